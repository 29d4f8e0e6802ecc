"""A remote run from top to bottom: look into the ledger, buy once, wait, fetch."""

from __future__ import annotations

import time
from dataclasses import replace

from ..choice import Choice
from ..errors import RemoteError
from .answers import AccessDenied, JobFailed, JobLost, JobNotSent, JobRejected, JobStopped, JobUncertain, NoAnswer
from .client import FalClient
from .collect import Collector, RemoteVideo, on_disk
from .context import Caps, RemoteContext
from .job import Job, JobMonitor, exclusive
from .ledger import Ledger, Row, State, check_day
from .payload import ENDPOINTS, Endpoint, PriceEstimate, RemoteRequest

DOUBT_S = 600  # after so long, a job that fal does not list was never there
CLOCK_SKEW_S = 120
ELSEWHERE = "id:"  # how the job keys begin of what was bought elsewhere


class Resume(Choice):
    """Whether a video that was bought before is taken, or bought again."""

    AUTO = "auto"
    ALWAYS_NEW = "always new"


def start(request: RemoteRequest, context: RemoteContext, resume: Resume = Resume.AUTO) -> Job[RemoteVideo]:
    """The video of a request, bought or collected in a thread of its own; `job.monitor.stop()` cancels it at fal."""
    return Job(lambda monitor: run(request, context, resume, monitor))


def run(request: RemoteRequest, context: RemoteContext, resume: Resume, monitor: JobMonitor) -> RemoteVideo:
    """The same in the present thread.

    Raises:
        RemoteError: it could not be had. Whatever was bought stays in the ledger, and the next run collects it.
    """
    with exclusive(request.job_key(context.key.fingerprint), monitor):
        return _Run(request, context, monitor).video(resume)


def start_collecting(request_id: str, endpoint: Endpoint, context: RemoteContext) -> Job[RemoteVideo]:
    """The video of a job that fal knows by this id, whoever bought it; never buys, and never cancels."""
    return Job(lambda monitor: collect(request_id.strip(), endpoint, context, monitor))


def collect(request_id: str, endpoint: Endpoint, context: RemoteContext, monitor: JobMonitor) -> RemoteVideo:
    """The same in the present thread."""
    _check_one(request_id)
    ledger = Ledger(context.private)
    row = ledger.by_request_id(request_id)
    with exclusive(row.job_key if row else f"{ELSEWHERE}{request_id}", monitor):
        row = ledger.by_request_id(request_id) or _new_row(request_id, endpoint, ledger)
        if row.job_key.startswith(ELSEWHERE):  # only whoever asks knows what made it
            row = ledger.update(row, endpoint=endpoint.id)
        estimate = PriceEstimate(row.usd, row.usd)
        if row.state is State.DONE and row.path.exists():
            return on_disk(row, estimate)
        maker = replace(ENDPOINTS.get(row.endpoint, endpoint), id=row.endpoint)
        with FalClient(context.key, maker, context.backoff) as client:
            try:
                return Collector(client, ledger, context, maker, monitor, cancels=False).video(row, estimate)
            except JobLost as error:
                raise JobLost(
                    f"{error} Choose the endpoint that made it, and the key of the account that did."
                ) from None


def _check_one(request_id: str) -> None:
    if not request_id:
        raise RemoteError("There is no request id. Copy one from fal.ai/dashboard, or from the node that bought it.")
    if "," in request_id:
        raise RemoteError(
            f"These are the ids of the {request_id.count(',') + 1} parts of a long video. Collect one at a time, or "
            f"run the node that bought them again: it fetches and joins them."
        )


def _new_row(request_id: str, endpoint: Endpoint, ledger: Ledger) -> Row:
    """For a job that was bought elsewhere: it counts against no cap of ours until fal tells its units."""
    now, state, seed = time.time(), State.SUBMITTED, endpoint.default_seed
    row = Row(f"{ELSEWHERE}{request_id}", 1, endpoint.id, state, request_id, {}, seed, now, now, 0.0, None, None)
    ledger.begin(row)
    return row


def check_affordable(
    requests: list[RemoteRequest], context: RemoteContext, caps: Caps, resume: Resume, ledger: Ledger
) -> None:
    """Raises RemoteError when `requests` would pass the cap of a run, or what is still to be bought that of the day."""
    caps.check_run(sum((request.estimate for request in requests), PriceEstimate(0, 0)))
    still = [r.estimate for r in requests if resume is Resume.ALWAYS_NEW or not _is_paid(r, context, ledger)]
    if still:
        check_day(ledger.spent_usd(), sum(estimate.usd_at_most for estimate in still), caps.day_usd)


def _is_paid(request: RemoteRequest, context: RemoteContext, ledger: Ledger) -> bool:
    row = ledger.newest(request.job_key(context.key.fingerprint))
    return row is not None and row.state in (State.SUBMITTED, State.CANCEL_REQUESTED, State.DONE)


class _Run:
    """One run of one request."""

    def __init__(self, request: RemoteRequest, context: RemoteContext, monitor: JobMonitor):
        self.request, self.context, self.monitor = request, context, monitor
        self.job_key = request.job_key(context.key.fingerprint)
        self.ledger = Ledger(context.private)

    def video(self, resume: Resume) -> RemoteVideo:
        """Found in the ledger, or bought."""
        row = self.ledger.newest(self.job_key)
        previous = row if resume is Resume.AUTO else None
        if previous and previous.state is State.DONE and previous.path and previous.path.exists():
            return on_disk(previous, self.request.estimate)
        with FalClient(self.context.key, self.request.endpoint, self.context.backoff) as self.client:
            if previous:
                video = self._collect(previous)
                if video:
                    return video
            return self._follow(self._buy(1 + row.attempt if row else 1))

    def _follow(self, row: Row) -> RemoteVideo:
        collector = Collector(self.client, self.ledger, self.context, self.request.endpoint, self.monitor)
        try:
            return collector.video(row, self.request.estimate)
        except JobLost as error:
            raise JobLost(f"{error} Run again to buy the video anew.") from None

    def _collect(self, row: Row) -> RemoteVideo | None:
        """The video of an earlier attempt, None where that attempt has come to nothing."""
        if row.state in (State.SUBMITTING, State.UNKNOWN):
            row = self._adopt(row)
            if row is None:
                return None
        if row.state not in (State.SUBMITTED, State.CANCEL_REQUESTED, State.DONE):
            return None
        was_cancelled = row.state is State.CANCEL_REQUESTED
        try:
            return self._follow(row)
        except (JobFailed, JobLost):
            if not was_cancelled:
                raise
            self.ledger.update(row, state=State.CANCELLED)
            return None

    def _adopt(self, row: Row) -> Row | None:
        """The row with the id that fal gave the job, if fal lists it; None where fal never got it.

        Raises:
            JobUncertain: it is too early to say, or fal does not tell.
        """
        self.monitor.report("looking for the job at fal", 0)
        sent = self.request.arguments(row.urls)
        doubt = JobUncertain(
            "fal may or may not have received this job (request may have been sent; connection lost). It was not sent "
            "again, and fal does not list it yet. Run again to look for it, or check fal.ai/dashboard; choose "
            "`always new` to buy it anew."
        )
        try:
            for request_id, arguments in self.client.requests_since(row.created - CLOCK_SKEW_S):
                if sent.items() <= arguments.items() and self.ledger.by_request_id(request_id) is None:
                    return self.ledger.update(row, state=State.SUBMITTED, request_id=request_id)
        except NoAnswer:
            raise doubt from None
        if time.time() - row.created < DOUBT_S:
            raise doubt
        return None

    def _buy(self, attempt: int) -> Row:
        """A new attempt: the row is on disk before the POST, the id before anything else happens."""
        check_affordable([self.request], self.context, self.context.caps, Resume.ALWAYS_NEW, self.ledger)
        urls = self._upload()
        self.monitor.wait(0)
        now, usd = time.time(), self.request.estimate.usd_at_most
        seed, endpoint = self.request.config.seed, self.request.endpoint.id
        row = Row(self.job_key, attempt, endpoint, State.SUBMITTING, None, urls, seed, now, now, usd, None, None)
        self.ledger.begin(row, self.context.caps.day_usd)
        self.monitor.report(f"buying - {self.request.estimate}", 0)
        with self.monitor.critical_section():
            return self._submit(row)

    def _submit(self, row: Row) -> Row:
        try:
            request_id = self.client.submit(self.request.arguments(row.urls), self.monitor.wait)
        except (JobNotSent, JobStopped):
            self.ledger.update(row, state=State.NOT_SENT)
            raise
        except (JobRejected, AccessDenied):
            self.ledger.update(row, state=State.REJECTED)
            raise
        except JobUncertain:
            self.ledger.update(row, state=State.UNKNOWN)
            raise
        return self.ledger.update(row, state=State.SUBMITTED, request_id=request_id)

    def _upload(self) -> dict[str, str]:
        urls = {}
        for name, media in self.request.media.items():
            self.monitor.report(f"sending {media.file_name} - {self.request.estimate}", 0)
            self.monitor.wait(0)
            urls[name] = self.ledger.uploaded(media.sha256) or self.client.upload(media, self.monitor.wait)
            self.ledger.remember_upload(media.sha256, urls[name])
        return urls
