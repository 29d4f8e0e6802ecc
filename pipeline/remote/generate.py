"""A remote run from top to bottom: look into the ledger, buy once, wait, fetch."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ..errors import RemoteError
from ..host import Host, Progress
from .answers import BadAnswer, JobFailed, KeyRefused, Lost, MaybeSent, NotSent, Rejected, Result, Stopped, printable
from .client import FalClient
from .desk import Caps, Desk
from .download import RemoteFile, fetch, target_stem
from .job import Job, Watch, turn
from .ledger import Ledger, Row, State, check_day
from .media import VideoFacts, inspect
from .payload import Estimate, RemoteRequest, dollars
from .progress import RUN_SHARE, Tale

logger = logging.getLogger(__name__)

DOUBT_S = 600  # after so long, a job that fal does not list was never there
CLOCK_SKEW_S = 120
SILENCE_UNITS = 600  # without one good answer
PATIENCE_UNITS = 7200  # from the start of the processing
POLL_ATTEMPTS = 8  # at a result that does not come


class Resume(str, Enum):
    """Whether a video that was bought before is taken, or bought again."""

    AUTO = "auto"
    ALWAYS_NEW = "always new"


@dataclass(frozen=True)
class RemoteVideo:
    """A video that is here.

    Attributes:
        seed: fal's, or the one that was sent where fal tells none.
        units: what fal bills, in seconds; None where it does not say.
        waited_s: from the start of this run; 0 for a video that was here before.
    """

    path: Path
    seed: int
    request_id: str
    facts: VideoFacts
    estimate: Estimate
    units: float | None
    billed_usd: float | None
    waited_s: float

    @property
    def info(self) -> str:
        """For the user: cost, wait, and what the file holds."""
        billed = "fal told no billed units"
        if self.units is not None:
            billed = f"{self.units:g} billed units, {dollars(self.billed_usd)}"
        waited = f"{self.waited_s:.0f} s waited" if self.waited_s else "taken from disk, nothing bought"
        return f"{self.estimate}; {billed}\n{waited}\n{self.path.name}: {self.facts}"


def generate(request: RemoteRequest, desk: Desk, host: Host, resume: Resume = Resume.AUTO) -> RemoteVideo:
    """The video of a request, made by fal or found here; `host` is told and may cancel.

    Raises:
        RemoteError: it could not be had. Whatever was bought stays in the ledger, and the next run collects it.
    """
    return watched(start(request, desk, resume), host)


def watched(job: Job[RemoteVideo], host: Host) -> RemoteVideo:
    """Tells `host` of a job until it ends; leaving this early, by whatever door, stops the job."""
    try:
        while job.alive:
            host.check_cancelled()
            host.report(Progress(job.watch.text, job.watch.fraction))
            job.join(0.1)
        return job.result()
    finally:
        job.watch.stop()


def start(request: RemoteRequest, desk: Desk, resume: Resume = Resume.AUTO) -> Job[RemoteVideo]:
    """The same in a thread of its own, which the caller watches; `job.watch.stop()` ends it and cancels at fal."""
    return Job(lambda watch: run(request, desk, resume, watch))


def run(request: RemoteRequest, desk: Desk, resume: Resume, watch: Watch) -> RemoteVideo:
    """The same in the present thread."""
    with turn(request.job_key(desk.key.fingerprint), watch):
        return _Run(request, desk, watch).video(resume)


def check_affordable(requests: list[RemoteRequest], desk: Desk, caps: Caps, resume: Resume, ledger: Ledger) -> None:
    """Raises RemoteError when `requests` would pass the cap of a run, or what is still to be bought that of the day."""
    caps.check_run(sum((request.estimate for request in requests), Estimate(0, 0)))
    still = [r.estimate for r in requests if resume is Resume.ALWAYS_NEW or not _is_bought(r, desk, ledger)]
    if still:
        check_day(ledger.spent_usd(), sum(estimate.usd_at_most for estimate in still), caps.day_usd)


def _is_bought(request: RemoteRequest, desk: Desk, ledger: Ledger) -> bool:
    row = ledger.newest(request.job_key(desk.key.fingerprint))
    return row is not None and row.state in (State.SUBMITTED, State.CANCEL_REQUESTED, State.DONE)


class _Run:
    """One run of one request."""

    def __init__(self, request: RemoteRequest, desk: Desk, watch: Watch):
        self.request, self.desk, self.watch = request, desk, watch
        self.job_key = request.job_key(desk.key.fingerprint)
        self.ledger = Ledger(desk.private)
        self.began = time.monotonic()

    def video(self, resume: Resume) -> RemoteVideo:
        row = self.ledger.newest(self.job_key)
        wanted = row if resume is Resume.AUTO else None
        if wanted and wanted.state is State.DONE and wanted.path and wanted.path.exists():
            return self._video(wanted, waited_s=0)
        with FalClient(self.desk.key, self.request.endpoint, self.desk.backoff) as self.client:
            if wanted:
                found = self._collected(wanted)
                if found:
                    return found
            return self._followed(self._bought(1 + row.attempt if row else 1))

    def _collected(self, row: Row) -> RemoteVideo | None:
        """The video of an earlier attempt, None where that attempt has come to nothing."""
        if row.state in (State.SUBMITTING, State.UNKNOWN):
            row = self._adopted(row)
            if row is None:
                return None
        if row.state not in (State.SUBMITTED, State.CANCEL_REQUESTED, State.DONE):
            return None
        was_cancelled = row.state is State.CANCEL_REQUESTED
        try:
            return self._followed(row)
        except (JobFailed, Lost):
            if not was_cancelled:
                raise
            self.ledger.update(row, state=State.CANCELLED)
            return None

    def _adopted(self, row: Row) -> Row | None:
        """The row with the id that fal gave the job, if fal lists it; None where fal never got it.

        Raises:
            MaybeSent: it is too early to say, or fal does not tell.
        """
        self.watch.say("looking for the job at fal", 0)
        sent = self.request.arguments(row.urls)
        doubt = MaybeSent(
            "fal may or may not have received this job (request may have been sent; connection lost). It was not sent "
            "again, and fal does not list it yet. Run again to look for it, or check fal.ai/dashboard; choose "
            "`always new` to buy it anew."
        )
        try:
            for request_id, arguments in self.client.requests_since(row.created - CLOCK_SKEW_S):
                if sent.items() <= arguments.items() and self.ledger.by_request_id(request_id) is None:
                    return self.ledger.update(row, state=State.SUBMITTED, request_id=request_id)
        except BadAnswer:
            raise doubt from None
        if time.time() - row.created < DOUBT_S:
            raise doubt
        return None

    def _bought(self, attempt: int) -> Row:
        """A new attempt: the row is on disk before the POST, the id before anything else happens."""
        check_affordable([self.request], self.desk, self.desk.caps, Resume.ALWAYS_NEW, self.ledger)
        urls = self._uploaded()
        self.watch.wait(0)
        now, usd = time.time(), self.request.estimate.usd_at_most
        seed, endpoint = self.request.config.sampling.seed, self.request.endpoint.id
        row = Row(self.job_key, attempt, endpoint, State.SUBMITTING, None, urls, seed, now, now, usd, None, None)
        self.ledger.begin(row, self.desk.caps.day_usd)
        self.watch.say(f"buying - {self.request.estimate}", 0)
        with self.watch.urgently():
            return self._submitted(row)

    def _submitted(self, row: Row) -> Row:
        try:
            request_id = self.client.submit(self.request.arguments(row.urls), self.watch.wait)
        except (NotSent, Stopped):
            self.ledger.update(row, state=State.NOT_SENT)
            raise
        except (Rejected, KeyRefused):
            self.ledger.update(row, state=State.REJECTED)
            raise
        except MaybeSent:
            self.ledger.update(row, state=State.UNKNOWN)
            raise
        return self.ledger.update(row, state=State.SUBMITTED, request_id=request_id)

    def _uploaded(self) -> dict[str, str]:
        urls = {}
        for name, media in self.request.media.items():
            self.watch.say(f"sending {media.file_name}", 0)
            self.watch.wait(0)
            urls[name] = self.ledger.uploaded(media.sha256) or self.client.upload(media, self.watch.wait)
            self.ledger.remember_upload(media.sha256, urls[name])
        return urls

    def _followed(self, row: Row) -> RemoteVideo:
        """Waits for a job that has an id and fetches its video; a stop on the way cancels it, once."""
        try:
            if row.state is not State.DONE:
                self._wait_for(row)
            return self._fetched(row)
        except Stopped:
            if row.state is State.DONE:
                raise
            with self.watch.urgently():
                self.ledger.update(row, state=State.CANCEL_REQUESTED)
                logger.info("Cancelled at fal: %s.", printable(self.client.cancel(row.request_id), 60))
            raise
        except JobFailed:
            self.ledger.update(row, state=State.FAILED)
            raise
        except Lost:
            self.ledger.update(row, state=State.LOST)
            raise

    def _wait_for(self, row: Row) -> None:
        """Returns when the job is completed.

        Raises:
            JobFailed, Lost, KeyRefused: it will not be.
            RemoteError: it is not yet; the row stays, and the next run goes on waiting.
        """
        unit_s, tale = self.desk.backoff.unit_s, Tale(self.request.estimate)
        last_good, bad, running_since = time.monotonic(), 0, None
        while True:
            waited_s, pause = time.monotonic() - self.began, self.desk.backoff.poll(time.monotonic() - self.began)
            self.watch.wait(0)
            try:
                poll = self.client.status(row.request_id)
            except BadAnswer as error:
                bad += 1
                logger.warning("Looking at the job at fal, try %d: %s", bad, error)
                if time.monotonic() - last_good > SILENCE_UNITS * unit_s:
                    raise RemoteError(f"{error} The job goes on at fal: run again to collect it.") from None
                self.watch.wait(self.desk.backoff.after(bad))
                continue
            last_good, bad = time.monotonic(), 0
            if poll.word == "COMPLETED":
                if poll.error:
                    raise JobFailed(f"The job failed at fal: {poll.error}; request {printable(row.request_id, 80)}.")
                return
            if poll.word == "IN_PROGRESS":
                running_since = running_since or time.monotonic()
                if time.monotonic() - running_since > PATIENCE_UNITS * unit_s:
                    raise RemoteError("The job is still running at fal after two hours. Run again to collect it.")
            self.watch.say(*tale.of(poll, waited_s))
            self.watch.wait(pause)

    def _fetched(self, row: Row) -> RemoteVideo:
        self.watch.say("fetching the result", RUN_SHARE)
        result = self._result(row.request_id)
        file = RemoteFile.of(result.body)
        stem = target_stem(self.desk.output, row.request_id)
        path = fetch(file, stem, self.desk.backoff, self.watch.wait, self._say_bytes)
        seed, usd = result.body.get("seed"), row.usd
        if result.units is not None:
            usd = round(result.units * self.request.endpoint.price.usd_per_s, 4)
        seed = seed if isinstance(seed, int) and 0 <= seed < 2**63 else row.seed
        row = self.ledger.update(row, state=State.DONE, path=path, units=result.units, usd=usd, seed=seed)
        return self._video(row, waited_s=time.monotonic() - self.began)

    def _result(self, request_id: str) -> Result:
        for tries in range(1, POLL_ATTEMPTS + 1):
            try:
                return self.client.result(request_id)
            except BadAnswer as error:
                last = error
                self.watch.wait(self.desk.backoff.after(tries))
        raise RemoteError(f"{last} The video is ready at fal: run again to fetch it.")

    def _say_bytes(self, here: int, total: int) -> None:
        of = f" of {total / 1e6:.1f}" if total else ""
        share = here / total if total else 0
        self.watch.say(f"downloading {here / 1e6:.1f}{of} MB", RUN_SHARE + (1 - RUN_SHARE) * share)

    def _video(self, row: Row, waited_s: float) -> RemoteVideo:
        billed = row.usd if row.units is not None else None
        facts = inspect(row.path)
        return RemoteVideo(
            row.path, row.seed, row.request_id, facts, self.request.estimate, row.units, billed, waited_s
        )
