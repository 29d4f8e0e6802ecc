"""The wait for a job that fal has, and its video; a stop on the way cancels what this run bought, once."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from ..errors import RemoteError
from .answers import ContentRejected, JobFailed, JobInterrupted, JobLost, NoAnswer, Result, printable
from .client import FalClient
from .context import RemoteContext
from .download import RemoteFile, fetch, target_stem
from .job import JobMonitor
from .ledger import Ledger, Row, State
from .media import VideoProperties, probe
from .pricing import PriceEstimate, PriceRule, dollars
from .progress import RUN_SHARE, ProgressText

logger = logging.getLogger(__name__)

SILENCE_UNITS = 600  # without one good answer
PATIENCE_UNITS = 7200  # from the start of the processing
RESULT_TRIES = 8


@dataclass(frozen=True)
class RemoteVideo:
    """A video that is here.

    Attributes:
        seed: fal's, or the one that was sent where fal names none.
        units: billed by fal, in seconds; None where it does not say.
        elapsed_s: from the start of this run; 0 for a video that was here before.
        notes: what the user should know beside.
    """

    path: Path
    seed: int
    request_id: str
    properties: VideoProperties
    estimate: PriceEstimate
    units: float | None
    billed_usd: float | None
    elapsed_s: float
    notes: tuple[str, ...] = ()

    @property
    def info(self) -> str:
        """For the user: cost, wait, contents of the file, notes."""
        billed = "fal named no billed units" if self.units is None else f"{self.units:g} billed units"
        cost = "" if self.billed_usd is None else f", {dollars(self.billed_usd)}"
        duration = f"{self.elapsed_s:.0f} s of waiting" if self.elapsed_s else "taken from disk, nothing bought"
        return "\n".join(
            [f"{self.estimate}; {billed}{cost}", duration, f"{self.path.name}: {self.properties}", *self.notes]
        )


def video_on_disk(row: Row, ledger: Ledger, estimate: PriceEstimate, elapsed_s: float = 0) -> RemoteVideo | None:
    """The video of a row, None where it is not there as it was fetched."""
    if row.state is not State.FINISHED or row.path is None or not ledger.is_intact(row.path):
        return None
    try:
        properties = probe(row.path)
    except RemoteError:
        return None
    billed_usd = row.usd if row.units is not None and row.usd > 0 else None
    return RemoteVideo(row.path, row.seed, request_id(row), properties, estimate, row.units, billed_usd, elapsed_s)


def request_id(row: Row) -> str:
    """The id of a row that fal has taken."""
    assert row.request_id is not None, "only rows with an id are collected"
    return row.request_id


class Collector:
    """One job, followed from its id to its file.

    Args:
        price: of the endpoint, for what fal bills; None where it is not known.
        owns: the row belongs to this run: a stop cancels its job, and a job that fal does not know is lost.
    """

    def __init__(
        self,
        client: FalClient,
        ledger: Ledger,
        context: RemoteContext,
        price: PriceRule | None,
        monitor: JobMonitor,
        owns: bool = True,
    ):
        self.client, self.ledger, self.context, self.price, self.monitor = client, ledger, context, price, monitor
        self.owns = owns
        self.start = time.monotonic()

    def video(self, row: Row, estimate: PriceEstimate) -> RemoteVideo:
        """The video of a row that has a request id; every error names that id and shows no secret.

        Raises:
            JobInterrupted: the job has been cancelled, or goes on at fal where this run does not own it.
            JobFailed, JobLost: there is none, and the row says so.
            RemoteError: it could not be had now; the row stays as it is, and the next run goes on.
        """
        try:
            return self._video(row, estimate)
        except RemoteError as error:
            text = self.context.key.redact.text(str(error))
            message = text if request_id(row) in text else f"{text} Request {request_id(row)}."
            raise type(error)(message) from None

    def _video(self, row: Row, estimate: PriceEstimate) -> RemoteVideo:
        try:
            if row.state is not State.FINISHED:
                self._await_completion(row, estimate)
            return self._download(row, estimate)
        except JobInterrupted:
            if row.state is not State.FINISHED and self.owns:
                self._cancel(row)
            raise
        except ContentRejected as error:
            self.ledger.forget_uploads(row.urls)
            self.ledger.update(row, state=State.CONTENT_REJECTED, reason=str(error))
            raise
        except JobFailed:
            self.ledger.update(row, state=State.FAILED)
            raise
        except JobLost:
            if self.owns:
                self.ledger.update(row, state=State.LOST)
            raise

    def _cancel(self, row: Row) -> None:
        with self.monitor.critical_section():
            try:
                self.ledger.update(row, state=State.CANCEL_REQUESTED)
            finally:
                logger.info("Cancelled at fal: %s.", printable(self.client.cancel(request_id(row)), 60))

    def _await_completion(self, row: Row, estimate: PriceEstimate) -> None:
        """Returns when the job is completed.

        Raises:
            JobFailed, JobLost, AccessDenied: it will not be.
            RemoteError: it is not yet; the row stays, and the next run goes on waiting.
        """
        backoff, progress_text = self.context.backoff, ProgressText(estimate)
        last_good, num_bad, running_since = time.monotonic(), 0, None
        while True:
            elapsed_s = time.monotonic() - self.start
            self.monitor.wait(0)
            try:
                poll = self.client.status(request_id(row), self.monitor.wait)
            except NoAnswer as error:
                num_bad += 1
                logger.warning("Asking fal for the job's state, try %d: %s", num_bad, error)
                if time.monotonic() - last_good > SILENCE_UNITS * backoff.unit_s:
                    raise RemoteError(f"{error} The job goes on at fal: run again to collect it.") from None
                self.monitor.wait(backoff.after(num_bad))
                continue
            last_good, num_bad = time.monotonic(), 0
            if poll.status == "COMPLETED":
                if poll.error:
                    self._raise_failure(row, poll.error)
                return
            if poll.status == "IN_PROGRESS":
                running_since = running_since or time.monotonic()
                if time.monotonic() - running_since > PATIENCE_UNITS * backoff.unit_s:
                    raise RemoteError("The job is still running at fal after two hours. Run again to collect it.")
            self.monitor.report(*progress_text.update(poll, elapsed_s))
            self.monitor.wait(backoff.poll(elapsed_s))

    def _raise_failure(self, row: Row, reason: str) -> None:
        """Raises JobFailed, or ContentRejected where the result says that the content was the reason."""
        try:
            self._result(row)
        except ContentRejected:
            raise
        except RemoteError as error:
            logger.info("The result of the failed job: %s", error)
        raise JobFailed(f"The job failed at fal: {reason}.")

    def _download(self, row: Row, estimate: PriceEstimate) -> RemoteVideo:
        self.monitor.report("fetching the result", RUN_SHARE)
        result = self._result(row)
        current = self.ledger.by_request_id(request_id(row)) or row  # another process may have fetched it meanwhile
        if video := video_on_disk(current, self.ledger, estimate, time.monotonic() - self.start):
            return video
        stem = target_stem(self.context.output, request_id(row))
        file = RemoteFile.from_result(result.body)
        path = fetch(file, stem, self.context.backoff, self.monitor.wait, self._report_bytes)
        self.ledger.remember_file(path)
        seed, usd = result.body.get("seed"), row.usd
        if result.units is not None and self.price is not None:
            usd = round(result.units * self.price.usd_per_s, 4)
        seed = seed if isinstance(seed, int) and 0 <= seed < 2**63 else row.seed
        row = self.ledger.update(row, state=State.FINISHED, path=path, units=result.units, usd=usd, seed=seed)
        video = video_on_disk(row, self.ledger, estimate, time.monotonic() - self.start)
        if video is None:
            raise RemoteError(f"{path} was changed while it was written. It is paid for: run again to fetch it.")
        return video

    def _result(self, row: Row) -> Result:
        failure = ""
        for tries in range(1, RESULT_TRIES + 1):
            try:
                return self.client.result(request_id(row), self.monitor.wait)
            except NoAnswer as error:
                failure = str(error)
                self.monitor.wait(self.context.backoff.after(tries))
        raise RemoteError(f"{failure} The video is ready at fal: run again to fetch it.")

    def _report_bytes(self, num_bytes: int, total: int) -> None:
        of = f" of {total / 1e6:.1f}" if total else ""
        share = num_bytes / total if total else 0
        self.monitor.report(f"downloading {num_bytes / 1e6:.1f}{of} MB", RUN_SHARE + (1 - RUN_SHARE) * share)
