"""Waits for a job that fal has, and fetches its video; a stop on the way cancels what this run bought, once."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from ..errors import RemoteError
from .answers import JobFailed, JobLost, JobStopped, NoAnswer, Result, printable
from .client import FalClient
from .context import RemoteContext
from .download import RemoteFile, fetch, target_stem
from .job import JobMonitor
from .ledger import Ledger, Row, State
from .media import VideoProperties, probe
from .payload import Endpoint, PriceEstimate, dollars
from .progress import RUN_SHARE, ProgressText

logger = logging.getLogger(__name__)

SILENCE_UNITS = 600  # without one good answer
PATIENCE_UNITS = 7200  # from the start of the processing
RESULT_TRIES = 8


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
    properties: VideoProperties
    estimate: PriceEstimate
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
        return f"{self.estimate}; {billed}\n{waited}\n{self.path.name}: {self.properties}"


def on_disk(row: Row, estimate: PriceEstimate, waited_s: float = 0) -> RemoteVideo:
    """The video of a row that is done."""
    billed = row.usd if row.units is not None else None
    return RemoteVideo(row.path, row.seed, row.request_id, probe(row.path), estimate, row.units, billed, waited_s)


class Collector:
    """Follows one job from its id to its file.

    Args:
        cancels: whether a stop cancels the job; not that of somebody who only looks for what another run bought.
    """

    def __init__(
        self,
        client: FalClient,
        ledger: Ledger,
        context: RemoteContext,
        endpoint: Endpoint,
        monitor: JobMonitor,
        cancels: bool = True,
    ):
        self.client, self.ledger, self.context, self.endpoint, self.monitor = client, ledger, context, endpoint, monitor
        self.cancels = cancels
        self.began = time.monotonic()

    def video(self, row: Row, estimate: PriceEstimate) -> RemoteVideo:
        """The video of a row that has a request id.

        Raises:
            JobStopped: the job has been cancelled, or goes on at fal where this one does not cancel.
            JobFailed, JobLost: there is none, and the row says so.
            RemoteError: it could not be had now; the row stays as it is, and the next run goes on.
        """
        try:
            if row.state is not State.DONE:
                self._await_completion(row, estimate)
            row = self._download(row)
            return on_disk(row, estimate, time.monotonic() - self.began)
        except JobStopped:
            if row.state is State.DONE or not self.cancels:
                raise
            with self.monitor.critical_section():
                self.ledger.update(row, state=State.CANCEL_REQUESTED)
                logger.info("Cancelled at fal: %s.", printable(self.client.cancel(row.request_id), 60))
            raise
        except JobFailed:
            self.ledger.update(row, state=State.FAILED)
            raise
        except JobLost:
            self.ledger.update(row, state=State.LOST)
            raise

    def _await_completion(self, row: Row, estimate: PriceEstimate) -> None:
        """Returns when the job is completed.

        Raises:
            JobFailed, JobLost, AccessDenied: it will not be.
            RemoteError: it is not yet; the row stays, and the next run goes on waiting.
        """
        unit_s, progress_text = self.context.backoff.unit_s, ProgressText(estimate)
        last_good, bad, running_since = time.monotonic(), 0, None
        while True:
            waited_s, pause = time.monotonic() - self.began, self.context.backoff.poll(time.monotonic() - self.began)
            self.monitor.wait(0)
            try:
                poll = self.client.status(row.request_id)
            except NoAnswer as error:
                bad += 1
                logger.warning("Looking at the job at fal, try %d: %s", bad, error)
                if time.monotonic() - last_good > SILENCE_UNITS * unit_s:
                    raise RemoteError(f"{error} The job goes on at fal: run again to collect it.") from None
                self.monitor.wait(self.context.backoff.after(bad))
                continue
            last_good, bad = time.monotonic(), 0
            if poll.status == "COMPLETED":
                if poll.error:
                    raise JobFailed(f"The job failed at fal: {poll.error}; request {printable(row.request_id, 80)}.")
                return
            if poll.status == "IN_PROGRESS":
                running_since = running_since or time.monotonic()
                if time.monotonic() - running_since > PATIENCE_UNITS * unit_s:
                    raise RemoteError("The job is still running at fal after two hours. Run again to collect it.")
            self.monitor.report(*progress_text.update(poll, waited_s))
            self.monitor.wait(pause)

    def _download(self, row: Row) -> Row:
        self.monitor.report("fetching the result", RUN_SHARE)
        result = self._result(row.request_id)
        file = RemoteFile.from_result(result.body)
        stem = target_stem(self.context.output, row.request_id)
        path = fetch(file, stem, self.context.backoff, self.monitor.wait, self._report_bytes)
        seed, usd = result.body.get("seed"), row.usd
        if result.units is not None:
            usd = round(result.units * self.endpoint.price.usd_per_s, 4)
        seed = seed if isinstance(seed, int) and 0 <= seed < 2**63 else row.seed
        return self.ledger.update(row, state=State.DONE, path=path, units=result.units, usd=usd, seed=seed)

    def _result(self, request_id: str) -> Result:
        for tries in range(1, RESULT_TRIES + 1):
            try:
                return self.client.result(request_id)
            except NoAnswer as error:
                last = error
                self.monitor.wait(self.context.backoff.after(tries))
        raise RemoteError(f"{last} The video is ready at fal: run again to fetch it.")

    def _report_bytes(self, here: int, total: int) -> None:
        of = f" of {total / 1e6:.1f}" if total else ""
        share = here / total if total else 0
        self.monitor.report(f"downloading {here / 1e6:.1f}{of} MB", RUN_SHARE + (1 - RUN_SHARE) * share)
