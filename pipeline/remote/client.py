"""fal's queue and its list of jobs: one request a call, and every failure by its meaning."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import NoReturn
from urllib.parse import quote, urlencode

from .answers import (
    Answer,
    ContentRejected,
    JobFailed,
    JobLost,
    JobRejected,
    JobUncertain,
    JobUnsent,
    NoAnswer,
    Poll,
    Result,
    log_lines,
    number,
)
from .connection import Connection
from .credentials import Key
from .exchange import AnswerTooLarge, Backoff, ExchangeError, RequestUnsent, Wait

logger = logging.getLogger(__name__)

PLATFORM_URL = "https://api.fal.ai/v1"
MAX_LIST_BYTES = 32 * 2**20  # a job's inputs may be files within the answer
LIST_SIZES = (100, 10, 1)  # jobs a page; fewer where a page is too large
MAX_PAGES = 20
CLOCK_SKEW_S = 120  # between servers of fal
START_WITHIN_S = 3600  # a job that a crash left behind shall not start days later
SUBMIT_S, LIST_S, POLL_S, CANCEL_S = 60, 60, 15, 5
CONNECT_TRIES, BUSY_TRIES = 4, 6
LONGEST_BUSY_WAIT = 30
CONTENT_STATUSES = (400, 413, 415, 422)  # a refusal that means the request, and not the moment
CHANGE_CONTENT = "Change the picture, the sound or the prompt; unchanged it is sent again by `always new` only."
_REQUEST_ID = re.compile(r"[^\s\x00-\x1f]{1,256}")


class FalClient:
    """One account at one endpoint, for one job; to be closed. Nothing that it returns or raises holds the key.

    Submitting is a single POST of our own: the library's `submit` repeats a POST whose answer is lost, and buys twice.

    Args:
        endpoint: id of the model.
    """

    def __init__(self, key: Key, endpoint: str, backoff: Backoff):
        self.connection = Connection(key, endpoint)
        self._endpoint, self._backoff = endpoint, backoff

    def __enter__(self) -> FalClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def submit(self, arguments: Mapping[str, object], wait: Wait) -> str:
        """Buys the job with one POST, and returns its request id.

        It is sent again only where it certainly never arrived, or was refused for being too busy.

        Raises:
            JobUnsent, JobRejected, ContentRejected, AccessDenied: nothing was bought.
            JobUncertain: nobody here can know.
        """
        unsent = busy = 0
        while True:
            try:
                answer = self._post(arguments)
            except JobUnsent:
                unsent += 1
                if unsent >= CONNECT_TRIES:
                    raise
                wait(self._backoff.after(unsent, first=0.5))
                continue
            if not answer.is_busy:
                return self._request_id(answer)
            busy += 1
            if busy >= BUSY_TRIES:
                raise JobRejected(
                    f"fal is too busy for the job ({self.connection.explain(answer)}). Try again in some minutes."
                )
            wait(self._busy_wait(answer, busy))

    def status(self, request_id: str, wait: Wait) -> Poll:
        """The state of a job.

        Raises:
            AccessDenied, JobRejected, JobLost: the next poll will not help.
            NoAnswer: it may.
        """
        answer = self._query("GET", f"{self._request_url(request_id)}/status?logs=1", POLL_S, wait)
        self._check_access(answer, request_id)
        body, status = self.connection.clean_json(answer.body), answer.body.get("status")
        if answer.status not in (200, 202) or status not in ("IN_QUEUE", "IN_PROGRESS", "COMPLETED"):
            raise NoAnswer(f"fal did not say how the job stands ({self.connection.explain(answer)}).")
        position = body["queue_position"] if isinstance(body.get("queue_position"), int) else None
        error = self.connection.clean(body["error"]) if body.get("error") else None
        return Poll(status, position, log_lines(body), error)

    def result(self, request_id: str, wait: Wait) -> Result:
        """The answer of the model to a completed job.

        Raises:
            JobFailed, ContentRejected: the model's own failure.
            AccessDenied, JobRejected, JobLost: asking again will not help.
            NoAnswer: it may.
        """
        answer = self._query("GET", self._request_url(request_id), POLL_S, wait)
        self._check_access(answer, request_id)
        reason = self.connection.explain(answer)
        if answer.status == 429 or answer.from_ingress or (answer.status == 200 and not answer.body):
            raise NoAnswer(f"fal did not hand over the result ({reason}).")
        if answer.status in CONTENT_STATUSES:
            raise ContentRejected(
                f"fal refuses the job for its content: {self.connection.explain(answer)}. {CHANGE_CONTENT}"
            )
        if answer.status != 200:
            raise JobFailed(f"The job failed at fal: {self.connection.explain(answer)}.")
        return Result(self.connection.clean_json(answer.body), number(answer.headers.get("x-fal-billable-units")))

    def cancel(self, request_id: str) -> str:
        """Asks fal once to drop the job; a second time only if the first got no answer. Returns fal's word."""
        for _ in range(2):
            try:
                answer = self._query("PUT", f"{self._request_url(request_id)}/cancel", CANCEL_S, None)
            except NoAnswer as error:
                logger.warning("Cancelling at fal: %s", error)
                continue
            return self.connection.clean(answer.body.get("status", answer.status))
        return "unanswered"

    def find_job(
        self, arguments: Mapping[str, object], since: float | None, is_taken: Callable[[str], bool], wait: Wait
    ) -> tuple[str | None, float | None]:
        """The account's job with these arguments, and fal's own clock.

        Args:
            since: fal's clock before the job can have been sent; None takes the list's own beginning.
            is_taken: true of ids that another purchase has.

        Returns:
            Its request id, None where the whole list has none; and fal's clock, None where it does not say.

        Raises:
            NoAnswer: the list could not be had, is cut off, or leaves out the inputs of a job.
        """
        is_complete, cursor = since is not None, None
        for _ in range(MAX_PAGES):
            answer = self._list_page(since, cursor, wait)
            items = answer.body.get("items")
            if answer.status != 200 or not isinstance(items, list):
                raise NoAnswer(f"fal did not list the account's jobs ({self.connection.explain(answer)}).")
            for item in items:
                inputs = item.get("json_input") if isinstance(item, dict) else None
                if not isinstance(inputs, dict):
                    is_complete = False
                elif arguments.items() <= inputs.items() and not is_taken(str(item.get("request_id"))):
                    return self._valid_id(item.get("request_id")), answer.server_time
            cursor = answer.body.get("next_cursor")
            if not cursor and not answer.body.get("has_more"):
                if is_complete:
                    return None, answer.server_time
                break
        raise NoAnswer("fal's list of the account's jobs is not complete.")

    def _list_page(self, since: float | None, cursor: object, wait: Wait) -> Answer:
        query: dict[str, object] = {"endpoint_id": self._endpoint, "expand": "payloads"}
        if since is not None:
            query["start"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(since - CLOCK_SKEW_S))
        if cursor:
            query["cursor"] = cursor
        for size in LIST_SIZES:
            url = f"{PLATFORM_URL}/models/requests/by-endpoint?{urlencode({**query, 'limit': size})}"
            try:
                return self.connection.exchange("GET", url, LIST_S, wait, max_bytes=MAX_LIST_BYTES)
            except AnswerTooLarge:
                continue
            except ExchangeError as error:
                raise NoAnswer(f"fal did not answer ({error}).") from None
        raise NoAnswer("fal's list of the account's jobs is too large to be read.")

    def _post(self, arguments: Mapping[str, object]) -> Answer:
        url, headers = f"{self.connection.queue_url}/{self._endpoint}", {"X-Fal-Request-Timeout": str(START_WITHIN_S)}
        content = json.dumps(arguments).encode()
        try:
            return self.connection.exchange("POST", url, SUBMIT_S, None, content=content, headers=headers)
        except RequestUnsent as error:
            raise JobUnsent(
                f"fal cannot be reached ({error}). Nothing was bought. Look at the network, its proxy and its "
                f"certificates."
            ) from None
        except ExchangeError as error:
            raise _uncertain(str(error)) from None

    def _request_id(self, answer: Answer) -> str:
        if answer.status >= 500:
            raise _uncertain(f"HTTP {answer.status}")
        if not 200 <= answer.status < 300:
            self._refuse(answer)
        return self._valid_id(answer.body.get("request_id"))

    def _valid_id(self, value: object) -> str:
        """A request id, which goes into addresses, file names and messages."""
        if isinstance(value, str) and _REQUEST_ID.fullmatch(value) and self.connection.clean(value) == value:
            return value
        raise _uncertain("an answer without a request id")

    def _refuse(self, answer: Answer) -> NoReturn:
        self.connection.check_account(answer)
        reason = self.connection.explain(answer)
        if answer.status == 404:
            raise JobRejected(
                f"fal no longer serves {self._endpoint} ({reason}). Choose another endpoint, or name the new one in "
                f"MULTITALK_FAL_ENDPOINT."
            )
        if answer.status in CONTENT_STATUSES:
            raise ContentRejected(f"fal refused the job for its content: {reason}. {CHANGE_CONTENT}")
        raise JobRejected(f"fal refused the job: {reason}.")

    def _check_access(self, answer: Answer, request_id: str) -> None:
        self.connection.check_account(answer)
        if answer.status == 404:
            raise JobLost(
                f"fal does not know request {request_id} of {self._endpoint} ({self.connection.explain(answer)})."
            )

    def _request_url(self, request_id: str) -> str:
        """Always built from the id: an address out of an answer would get the key, on whatever host it names."""
        return f"{self.connection.app_url}/requests/{quote(request_id, safe='')}"

    def _query(self, method: str, url: str, limit_s: float, wait: Wait | None) -> Answer:
        try:
            return self.connection.exchange(method, url, limit_s, wait)
        except ExchangeError as error:
            raise NoAnswer(f"fal did not answer ({error}).") from None

    def _busy_wait(self, answer: Answer, busy: int) -> float:
        delay_s = number(answer.headers.get("retry-after"))
        if delay_s is None:
            return self._backoff.after(busy, first=2, longest=LONGEST_BUSY_WAIT)
        return self._backoff.unit_s * min(delay_s, LONGEST_BUSY_WAIT)


def _uncertain(reason: str) -> JobUncertain:
    return JobUncertain(
        f"fal may or may not have received this job (request may have been sent; connection lost: {reason}). It was "
        f"not sent again. Run again to look for it, or check fal.ai/dashboard; choose `always new` to buy it anew."
    )
