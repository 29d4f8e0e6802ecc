"""One request: found in the ledger, or bought once; then followed to its video."""

from __future__ import annotations

import logging
import time
from typing import NoReturn

from ..choice import Choice
from ..errors import RemoteError
from .answers import (
    AccessDenied,
    ContentRejected,
    JobFailed,
    JobInterrupted,
    JobLost,
    JobRejected,
    JobUncertain,
    JobUnsent,
    NoAnswer,
)
from .client import START_WITHIN_S, FalClient
from .collect import Collector, RemoteVideo, video_on_disk
from .context import Caps, RemoteContext
from .download import check_folder
from .job import JobMonitor, exclusive
from .ledger import Ledger, Row, State, check_day
from .pricing import PriceEstimate
from .request import RemoteRequest
from .storage import Leave, Storage

logger = logging.getLogger(__name__)

DOUBT_S = START_WITHIN_S + 3600  # after so long by fal's clock, a job that fal does not list was never there


class Resume(Choice):
    """Use of a video that was bought before with the same inputs."""

    AUTO = "auto"  # taken, if it was bought with the present key
    ANY_KEY = "any key"  # taken
    ALWAYS_NEW = "always new"  # bought again


def run(request: RemoteRequest, context: RemoteContext, resume: Resume, monitor: JobMonitor) -> RemoteVideo:
    """The video of a request, in the present thread.

    Raises:
        RemoteError: it could not be had. Whatever was bought stays in the ledger, and the next run collects it.
    """
    with exclusive(request.job_key(context.key.fingerprint), monitor):
        return Purchase(request, context, resume, monitor).video()


def check_purchases(
    requests: list[RemoteRequest], context: RemoteContext, caps: Caps, resume: Resume, ledger: Ledger
) -> None:
    """Refuses `requests` before the first of them is bought.

    Raises:
        RemoteError: they would pass the cap of a run, or those that are still to be bought that of the day; or one
            was bought with another key, or was refused for its content.
    """
    caps.check_run(sum((request.estimate for request in requests), PriceEstimate(0, 0)))
    unpaid = [request for request in requests if not _is_paid(previous_attempt(request, context, resume, ledger))]
    if unpaid:
        check_day(ledger.spending_usd(), sum(request.estimate.usd_at_most for request in unpaid), caps.day_usd)


def previous_attempt(request: RemoteRequest, context: RemoteContext, resume: Resume, ledger: Ledger) -> Row | None:
    """The attempt that a run goes on from, None where it buys anew.

    Raises:
        ContentRejected: fal has refused this very request.
        RemoteError: the video was bought with another key, and the user has not said what is to become of it.
    """
    if resume is Resume.ALWAYS_NEW:
        return None
    job_key = request.job_key(context.key.fingerprint)
    row = ledger.newest(job_key)
    if row and row.state is State.CONTENT_REJECTED:
        raise ContentRejected(f"fal has refused this very request before, and it was not sent again. {row.reason}")
    if row and row.state.may_be_paid:
        return row
    foreign = ledger.paid_with_other_key(request.content_key, job_key)
    if foreign is None:
        return None
    if resume is Resume.ANY_KEY:
        return foreign
    raise RemoteError(
        f"This very video was bought with another key (request {foreign.request_id or 'unknown'}, {foreign.state.value}"
        f"). Nothing was bought. Set resume to `any key` to take it, or to `always new` to buy it with the present key."
    )


def _is_paid(row: Row | None) -> bool:
    return row is not None and row.state in (State.SUBMITTED, State.CANCEL_REQUESTED, State.FINISHED)


class Purchase:
    """One run of one request."""

    def __init__(self, request: RemoteRequest, context: RemoteContext, resume: Resume, monitor: JobMonitor):
        self.request, self.context, self.resume, self.monitor = request, context, resume, monitor
        self.job_key = request.job_key(context.key.fingerprint)
        self.ledger = Ledger(context.private)

    def video(self) -> RemoteVideo:
        """Taken from disk, collected from fal, or bought."""
        previous = previous_attempt(self.request, self.context, self.resume, self.ledger)
        if previous and (video := video_on_disk(previous, self.ledger, self.request.estimate)):
            return video
        with FalClient(self.context.key, self.request.endpoint.id, self.context.backoff) as self.client:
            if previous and (video := self._collect(previous)):
                return video
            return self._follow(self._buy())

    def _follow(self, row: Row) -> RemoteVideo:
        owns, price = row.job_key == self.job_key, self.request.endpoint.price
        collector = Collector(self.client, self.ledger, self.context, price, self.monitor, owns)
        try:
            return collector.video(row, self.request.estimate)
        except JobLost as error:
            advice = "Run again" if owns else "Set resume to `always new`"
            raise JobLost(f"{error} {advice} to buy the video anew.") from None

    def _collect(self, row: Row) -> RemoteVideo | None:
        """The video of an earlier attempt, None where that attempt has come to nothing."""
        if row.state in (State.SUBMITTING, State.UNKNOWN):
            adopted_row = self._adopt(row)
            if adopted_row is None:
                return None
            row = adopted_row
        was_cancelled = row.state is State.CANCEL_REQUESTED
        try:
            return self._follow(row)
        except (JobFailed, JobLost):
            if not was_cancelled or row.job_key != self.job_key:
                raise
            self.ledger.update(row, state=State.CANCELLED)
            return None

    def _adopt(self, row: Row) -> Row | None:
        """The row with the id that fal gave the job, if fal lists it; None where fal never got it.

        Only fal's own clock and a whole list say that it never did.

        Raises:
            JobUncertain: it is too early to say, or fal does not.
        """
        self.monitor.report("looking for the job at fal", 0)
        arguments = self.request.arguments(row.urls)
        try:
            request_id, now = self.client.find_job(arguments, row.server_time, self._is_taken, self.monitor.wait)
        except NoAnswer as error:
            raise _doubt(str(error)) from None
        if request_id is not None:
            return self.ledger.update(row, state=State.SUBMITTED, request_id=request_id)
        is_early = now is None or row.server_time is None or now - row.server_time < DOUBT_S
        if is_early or row.job_key != self.job_key:  # another account's jobs are not in this list
            raise _doubt("fal does not list it yet.")
        return None

    def _is_taken(self, request_id: str) -> bool:
        return self.ledger.by_request_id(request_id) is not None

    def _buy(self) -> Row:
        """A new attempt: the row is on disk before the POST, the id before anything else happens."""
        request, context = self.request, self.context
        check_purchases([request], context, context.caps, Resume.ALWAYS_NEW, self.ledger)
        check_folder(context.output)
        self.monitor.report(f"sending the inputs - {request.estimate}", 0)
        storage = Storage(self.client.connection, context.backoff, self.monitor.wait)
        leave = storage.open()
        urls = self._upload(storage, leave)
        self.monitor.wait(0)
        newest, now = self.ledger.newest(self.job_key), time.time()
        row = Row(
            job_key=self.job_key,
            attempt=newest.attempt + 1 if newest else 1,
            endpoint=request.endpoint.id,
            state=State.SUBMITTING,
            request_id=None,
            urls=urls,
            seed=request.config.seed,
            created=now,
            updated=now,
            usd=request.estimate.usd_at_most,
            content_key=request.content_key,
            server_time=leave.server_time,
        )
        self.ledger.begin(row, context.caps.day_usd)
        self.monitor.report(f"buying - {request.estimate}", 0)
        with self.monitor.critical_section():
            return self._submit(row)

    def _submit(self, row: Row) -> Row:
        try:
            request_id = self.client.submit(self.request.arguments(row.urls), self.monitor.wait)
        except (JobUnsent, JobInterrupted) as error:
            self._give_up(row, error, state=State.UNSENT)
        except (JobRejected, AccessDenied) as error:
            self._give_up(row, error, state=State.REJECTED)
        except ContentRejected as error:
            self._give_up(row, error, state=State.CONTENT_REJECTED, reason=str(error))
        except JobUncertain as error:
            self._give_up(row, error, state=State.UNKNOWN)
        logger.info("fal has taken the job: request %s.", request_id)
        try:
            return self.ledger.update(row, state=State.SUBMITTED, request_id=request_id)
        except RemoteError as error:
            raise RemoteError(
                f"fal has taken the job as request {request_id}, and it is being paid for. Note the id: MultiTalk "
                f"Collect from fal fetches its video. {error}"
            ) from None

    def _give_up(self, row: Row, error: RemoteError, **changes: object) -> NoReturn:
        """Raises `error`; a row that cannot be changed stays as it is, which means that fal may have the job."""
        try:
            self.ledger.update(row, **changes)
        except RemoteError as failure:
            logger.warning("%s", failure)
        raise error

    def _upload(self, storage: Storage, leave: Leave) -> dict[str, str]:
        urls = {}
        for name, media in self.request.media.items():
            text = f"sending {media.file_name} - {self.request.estimate}"
            self.monitor.report(text, 0)
            self.monitor.wait(0)

            def report(num_bytes: int, total: int, text: str = text) -> None:
                self.monitor.report(f"{text} - {num_bytes / 1e6:.1f} of {total / 1e6:.1f} MB", 0)

            urls[name] = self.ledger.uploaded(media.sha256) or storage.upload(media, leave, report)
            self.ledger.remember_upload(media.sha256, urls[name])
        return urls


def _doubt(reason: str) -> JobUncertain:
    return JobUncertain(
        f"fal may or may not have received this job (request may have been sent; connection lost), and nothing was "
        f"bought now: {reason} Run again to look for it, or check fal.ai/dashboard; choose `always new` to buy it anew."
    )
