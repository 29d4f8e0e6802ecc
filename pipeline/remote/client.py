"""fal's queue over the wire: one request a call, each with its timeout, and every failure reason by what it means."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from ..errors import RemoteError
from .answers import (
    AccessDenied,
    Answer,
    JobFailed,
    JobLost,
    JobNotSent,
    JobRejected,
    JobUncertain,
    NoAnswer,
    Poll,
    Result,
    log_lines,
    number,
    printable,
)
from .credentials import Key
from .media import Media
from .payload import INFINITALK, Endpoint

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)

THREAD_NAME = "multitalk-fal"  # of every thread that speaks to fal
PLATFORM_URL = "https://api.fal.ai/v1"
MAX_ANSWER_BYTES = 2**20
START_WITHIN_S = 3600  # a job that a crash left behind shall not start days later
CONNECT_S, SUBMIT_S, POLL_S, CANCEL_S = 10, 60, 15, 5
UPLOAD_S = 20  # the client repeats an upload by itself, up to ten times
CONNECT_TRIES, BUSY_TRIES, UPLOAD_TRIES = 4, 6, 3
LONGEST_BUSY_WAIT = 30

Wait = Callable[[float], None]  # sleeps so many seconds, and raises JobStopped as soon as the user wants an end


@dataclass(frozen=True)
class Backoff:
    """How long to wait between two tries, in units of a second (tests take a shorter one)."""

    unit_s: float = 1.0

    def after(self, tries: int, first: float = 1.0, longest: float = 15.0) -> float:
        """Seconds after so many failures: `first`, doubled with each, never more than `longest` units."""
        return self.unit_s * min(first * 2 ** (tries - 1), longest)

    def poll(self, waited_s: float) -> float:
        """Seconds between two looks at a job: the longer it takes, the rarer."""
        waited = waited_s / self.unit_s
        return self.unit_s * (1 if waited < 30 else 2 if waited < 300 else 5)


class FalClient:
    """One account at one endpoint, for one job; to be closed.

    Submitting is our own single POST: the library's `submit` repeats a POST whose answer is lost, and buys twice.
    """

    def __init__(self, key: Key, endpoint: Endpoint, backoff: Backoff):
        fal_client = load_library()
        self._key, self._endpoint, self._backoff = key, endpoint, backoff
        self._library = fal_client.SyncClient(key=key.value, default_timeout=UPLOAD_S)
        handle = self._library.get_handle(endpoint.id, "x")  # asks nobody
        self._http: httpx.Client = handle.client
        self._app_url = handle.response_url.removesuffix("/requests/x")
        self._queue_url = self._app_url.rsplit("/", 2)[0]
        logging.getLogger("httpx").addFilter(_is_foreign)

    def __enter__(self) -> FalClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def upload(self, media: Media, wait: Wait) -> str:
        """The URL of the uploaded file, which fal deletes after a day.

        Raises:
            AccessDenied: 401 or 403.
            JobNotSent: three tries failed.
        """
        import fal_client
        import httpx

        for tries in range(1, UPLOAD_TRIES + 1):
            try:
                url = self._library.upload(
                    media.data,
                    media.content_type,
                    media.file_name,
                    fallback_repository=[],  # the fallback hands the key to a storage host
                    lifecycle=fal_client.StorageSettings(expires_in="1d"),
                )
                if isinstance(url, str) and url.startswith("http"):
                    return url
                raise ValueError("an answer without an address")
            except (fal_client.FalClientError, httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                status = getattr(getattr(error, "response", None), "status_code", None)
                reason = type(error).__name__ if status is None else f"HTTP {status}"
            if status in (401, 403):
                raise self._key_refused(status)
            logger.warning("Sending %s to fal failed (%s), try %d of %d.", media.file_name, reason, tries, UPLOAD_TRIES)
            if tries < UPLOAD_TRIES:
                wait(self._backoff.after(tries, first=1, longest=4))
        raise JobNotSent(f"{media.file_name} could not be sent to fal ({reason}). Nothing was bought. Try again later.")

    def submit(self, arguments: Mapping[str, object], wait: Wait) -> str:
        """Buys the job with one POST, and returns its request id.

        It is sent again only where it certainly never arrived, or was refused for being too busy.

        Raises:
            JobNotSent, JobRejected, AccessDenied: nothing was bought.
            JobUncertain: nobody here can know.
        """
        unsent = busy = 0
        while True:
            try:
                answer = self._post(arguments)
            except JobNotSent:
                unsent += 1
                if unsent >= CONNECT_TRIES:
                    raise
                wait(self._backoff.after(unsent, first=0.5))
                continue
            if not answer.too_busy:
                return self._request_id(answer)
            busy += 1
            if busy >= BUSY_TRIES:
                raise JobRejected(f"fal is too busy for the job ({self._explain(answer)}). Try again in some minutes.")
            wait(self._busy_wait(answer, busy))

    def status(self, request_id: str) -> Poll:
        """Looks at a job once.

        Raises:
            AccessDenied, JobLost: looking again will not help.
            NoAnswer: it may.
        """
        answer = self._request("GET", f"{self._request_url(request_id)}/status?logs=1", POLL_S)
        self._check_access(answer, request_id)
        body, word = answer.body, answer.body.get("status")
        if answer.status not in (200, 202) or word not in ("IN_QUEUE", "IN_PROGRESS", "COMPLETED"):
            raise NoAnswer(f"fal did not say how the job stands ({self._explain(answer)}).")
        ahead = body["queue_position"] if isinstance(body.get("queue_position"), int) else None
        return Poll(word, ahead, log_lines(body), self._clean(body["error"]) if body.get("error") else None)

    def result(self, request_id: str) -> Result:
        """What a completed job has made.

        Raises:
            JobFailed: the model's own failure.
            AccessDenied, JobLost: asking again will not help.
            NoAnswer: it may.
        """
        answer = self._request("GET", self._request_url(request_id), POLL_S)
        self._check_access(answer, request_id)
        if answer.status == 429 or answer.from_ingress or (answer.status == 200 and not answer.body):
            raise NoAnswer(f"fal did not hand over the result ({self._explain(answer)}).")
        if answer.status != 200:
            raise JobFailed(f"The job failed at fal: {self._explain(answer)}; request {self._clean(request_id)}.")
        return Result(answer.body, number(answer.headers.get("x-fal-billable-units")))

    def cancel(self, request_id: str) -> str:
        """Asks fal once to drop the job; a second time only if the first got no answer. Returns fal's word."""
        for _ in range(2):
            try:
                answer = self._request("PUT", f"{self._request_url(request_id)}/cancel", CANCEL_S)
            except NoAnswer as error:
                logger.warning("Cancelling at fal: %s", error)
                continue
            return str(answer.body.get("status", answer.status))
        return "unanswered"

    def requests_since(self, moment: float) -> Iterator[tuple[str, dict[str, Any]]]:
        """Request id and arguments of the account's jobs at this endpoint that were sent after `moment`.

        Raises:
            NoAnswer: the list could not be had.
        """
        start = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))
        query = {"endpoint_id": self._endpoint.id, "expand": "payloads", "start": start, "limit": 100}
        for _ in range(10):  # pages
            answer = self._request("GET", f"{PLATFORM_URL}/models/requests/by-endpoint?{urlencode(query)}", POLL_S)
            if answer.status != 200 or not isinstance(answer.body.get("items"), list):
                raise NoAnswer(f"fal did not list the account's jobs ({self._explain(answer)}).")
            for item in answer.body["items"]:
                if isinstance(item, dict) and isinstance(item.get("json_input"), dict) and item.get("request_id"):
                    yield str(item["request_id"]), item["json_input"]
            query["cursor"] = answer.body.get("next_cursor")
            if not query["cursor"]:
                return

    def _post(self, arguments: Mapping[str, object]) -> Answer:
        import httpx

        never_sent = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
        headers = {"X-Fal-Request-Timeout": str(START_WITHIN_S)}
        try:
            return self._exchange("POST", f"{self._queue_url}/{self._endpoint.id}", SUBMIT_S, arguments, headers)
        except never_sent as error:
            raise JobNotSent(
                f"fal cannot be reached ({type(error).__name__}). Nothing was bought. Look at the network, "
                f"its proxy and its certificates."
            ) from None
        except httpx.HTTPError as error:
            raise _uncertain(type(error).__name__) from None

    def _request_id(self, answer: Answer) -> str:
        if 200 <= answer.status < 300:
            request_id = answer.body.get("request_id")
            if isinstance(request_id, str) and request_id:
                return request_id
            raise _uncertain(f"HTTP {answer.status} without a request id")
        if answer.status >= 500:
            raise _uncertain(f"HTTP {answer.status}")
        raise self._refusal(answer)

    def _refusal(self, answer: Answer) -> RemoteError:
        reason = self._explain(answer)
        if answer.status == 402 or (answer.status == 403 and re.search("lock|balance", reason, re.IGNORECASE)):
            return JobRejected(f"The fal account has no credit: fal.ai/dashboard/billing. fal said: {reason}.")
        if answer.status in (401, 403):
            return self._key_refused(answer.status)
        if answer.status == 404:
            return JobRejected(
                f"fal no longer serves {self._endpoint.id} ({reason}); {INFINITALK.id} takes the same inputs. "
                f"MULTITALK_FAL_ENDPOINT names another."
            )
        return JobRejected(f"fal refused the job: {reason}.")

    def _key_refused(self, status: int) -> AccessDenied:
        return AccessDenied(
            f"fal does not take the key from {self._key.source} (HTTP {status}). Look at fal.ai/dashboard/keys; "
            f"a key of API scope is enough."
        )

    def _check_access(self, answer: Answer, request_id: str) -> None:
        if answer.status in (401, 403):
            raise self._key_refused(answer.status)
        if answer.status == 404:
            known_as = f"{self._clean(request_id)} of {self._endpoint.id}"
            raise JobLost(f"fal does not know request {known_as} ({self._explain(answer)}).")

    def _request_url(self, request_id: str) -> str:
        """Always built from the id: an address out of an answer would get the key, on whatever host it names."""
        return f"{self._app_url}/requests/{quote(request_id, safe='')}"

    def _request(self, method: str, url: str, timeout_s: float) -> Answer:
        import httpx

        try:
            return self._exchange(method, url, timeout_s)
        except httpx.HTTPError as error:
            raise NoAnswer(f"fal did not answer ({type(error).__name__}).") from None

    def _exchange(
        self,
        method: str,
        url: str,
        timeout_s: float,
        arguments: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        import httpx

        timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s))
        end, content = time.monotonic() + timeout_s, b""
        with self._http.stream(
            method, url, json=arguments, headers=headers, timeout=timeout, follow_redirects=False
        ) as response:
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > MAX_ANSWER_BYTES or time.monotonic() > end:
                    raise httpx.ReadTimeout("an answer without end")
            return Answer(response.status_code, {k.lower(): v for k, v in response.headers.items()}, content)

    def _busy_wait(self, answer: Answer, busy: int) -> float:
        delay_s = number(answer.headers.get("retry-after"))
        if delay_s is None:
            return self._backoff.after(busy, first=2, longest=LONGEST_BUSY_WAIT)
        return self._backoff.unit_s * min(max(delay_s, 0), LONGEST_BUSY_WAIT)

    def _explain(self, answer: Answer) -> str:
        return f"HTTP {answer.status} {self._clean(answer.detail)}".strip()

    def _clean(self, text: object) -> str:
        return printable(self._key.redact(str(text)), 300)


def load_library() -> Any:
    """The module fal_client; it takes half a second, so only when it is needed.

    Raises:
        RemoteError: it is not installed.
    """
    try:
        import fal_client
    except ImportError:
        raise RemoteError('The remote run needs the package fal-client: pip install "fal-client>=1.0.3,<2"') from None
    return fal_client


def _uncertain(reason: str) -> JobUncertain:
    return JobUncertain(
        f"fal may or may not have received this job (request may have been sent; connection lost: {reason}). It was "
        f"not sent again. Run again to look for it, or check fal.ai/dashboard; choose `always new` to buy it anew."
    )


def _is_foreign(record: logging.LogRecord) -> bool:
    """httpx tells of each request at INFO, and ComfyUI prints that: a line a look, with its address."""
    return not (record.threadName or "").startswith(THREAD_NAME)
