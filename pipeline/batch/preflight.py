"""The preflight of a batch: all lines checked, nothing made, and what they take together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..errors import MultiTalkError, Problems
from ..host import format_duration
from ..memory.placement import GB
from ..preflight.estimate import RunEstimate
from .manifest import InvalidLine, Job
from .results import Failure, OutputFolder, Row
from .worker import ClipWorker

VIDEO_BYTES = 0.1  # a pixel of a frame in the finished file; the demo's took 0.04


@dataclass
class BatchEstimate:
    """Work, time and room of the lines that are not finished yet.

    Attributes:
        estimates: of the lines that can run.
        rows: of the lines that cannot, and of those with something worth knowing.
        num_skipped: lines that are finished.
        num_failed: lines that cannot run.
    """

    estimates: list[RunEstimate] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    num_skipped: int = 0
    num_failed: int = 0

    def fail(self, line: Job | InvalidLine, error: str) -> None:
        """Counts a line that cannot run."""
        self.num_failed += 1
        self.rows.append(Row.of(line, Failure(error)))

    def describe(self) -> str:
        """The total, a line for each quantity."""
        runs = self.estimates
        measured = [run.seconds for run in runs if run.seconds is not None]
        if runs and len(measured) == len(runs):
            time = f"about {format_duration(sum(measured))} on one device, divided by as many as there are"
        else:
            time = f"{len(runs) - len(measured)} of {len(runs)} lines are of a kind not measured here yet; make one"
        videos = sum(run.frames * run.height * run.width for run in runs) * VIDEO_BYTES
        windows = max((run.disk_bytes for run in runs), default=0)
        return "\n".join(
            (
                f"lines: {len(runs)} to make, {self.num_skipped} finished, {self.num_failed} that cannot run",
                f"video: {format_duration(sum(run.frames for run in runs) / 25)}",
                f"forwards: at most {sum(run.forwards for run in runs)}",
                f"time: {time}",
                f"disk: about {videos / GB:.2f} GB of videos, and up to {windows / GB:.2f} GB for each clip at work",
            )
        )


def preflight(lines: Sequence[Job | InvalidLine], output: OutputFolder, report: Callable[[int], None]) -> BatchEstimate:
    """Checks every line against this machine's memory and disk; `report` is handed the number of lines behind."""
    batch, worker = BatchEstimate(), ClipWorker(output)
    for count, line in enumerate(lines):
        report(count)
        if isinstance(line, InvalidLine):
            batch.fail(line, line.error)
        elif output.is_finished(line):
            batch.num_skipped += 1
        else:
            problems = Problems()
            try:
                _, run = worker.check(line, problems)
            except MultiTalkError as error:
                batch.fail(line, str(error))
            else:
                assert run.estimate is not None, "a request without problems is estimated"
                batch.estimates.append(run.estimate)
                if problems.notes:
                    batch.rows.append(Row(str(line.number), line.id, "can run", remarks="\n".join(problems.notes)))
    return batch
