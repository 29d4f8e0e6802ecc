"""The loop of a batch: lines become jobs, jobs go to workers, and lost ones wait again."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from ..host import Progress
from .manifest import InvalidLine, Job, Manifest
from .results import Failure, OutputFolder, Result, Row

POLL_S = 0.5
MAX_LOSSES = 3  # of workers in one window of a clip, which is then taken for the cause


@dataclass(frozen=True)
class Lost:
    """The end of a worker in the middle of a clip.

    Attributes:
        reason: for people.
        counts: the worker died; False where it only could not be reached.
    """

    reason: str
    counts: bool = True


class WorkerPool(Protocol):
    """The workers of a batch."""

    def grow(self, num_jobs: int) -> None:
        """Starts workers, as many as there are jobs and devices."""

    def submit(self, job: Job) -> str | None:
        """Hands a job to an idle worker and returns the worker's name; None where there is none."""
        ...

    def wait(self, timeout_s: float) -> list[tuple[Job, Result | Failure | Lost]]:
        """The jobs that have ended since, after at most `timeout_s`."""
        ...

    def progress(self) -> dict[str, Progress]:
        """Position of each running clip, by the job's id."""
        ...


class Board(Protocol):
    """Shows the batch to people."""

    def show(self, state: BatchState, progress: dict[str, Progress]) -> None:
        """The state of all."""

    def say(self, row: Row) -> None:
        """A line that failed."""


@dataclass
class BatchState:
    """The jobs of a batch by what became of them; `rows` are the outcomes of this run."""

    waiting: deque[Job] = field(default_factory=deque)
    running: dict[str, Job] = field(default_factory=dict)
    num_skipped: int = 0
    num_made: int = 0
    num_failed: int = 0
    rows: list[Row] = field(default_factory=list)

    @property
    def num_open(self) -> int:
        """Jobs that wait or run."""
        return len(self.waiting) + len(self.running)

    def fraction(self, progress: dict[str, Progress]) -> float:
        """0..1 of the work that this run has, running clips in part."""
        ended = self.num_made + self.num_failed
        parts = sum(progress[id_].fraction for id_ in self.running if id_ in progress)
        return (ended + parts) / max(1, ended + self.num_open)


class Batch:
    """A manifest on its way to videos.

    Args:
        manifest: read on while it grows.
        output: where the videos go; what is finished there is not made again.
        pool: the workers.
        board: shows it.
    """

    def __init__(self, manifest: Manifest, output: OutputFolder, pool: WorkerPool, board: Board):
        self._manifest, self._output, self._pool, self._board = manifest, output, pool, board
        self._losses: Counter[tuple[str, int]] = Counter()  # by id and window
        self._windows: dict[str, int] = {}  # the last that a job was seen in
        self.state = BatchState()

    def run(self) -> BatchState:
        """Runs until every line is made, skipped or failed; the lines that come meanwhile too."""
        state = self.state
        self._take(self._manifest.read(is_final=False))
        while state.num_open or self._take(self._manifest.read(is_final=True)):
            self._pool.grow(state.num_open)
            self._submit()
            for job, outcome in self._pool.wait(POLL_S):
                del state.running[job.id]
                self._end(job, outcome)
            progress = self._pool.progress()
            self._note_windows(progress)
            self._board.show(state, progress)
            self._take(self._manifest.read(is_final=False))
        return state

    def _take(self, lines: Iterable[Job | InvalidLine]) -> bool:
        """Queues new lines; True where there are any."""
        lines = list(lines)
        for line in lines:
            if isinstance(line, InvalidLine):
                self._end(line, Failure(line.error))
            elif self._output.is_finished(line):
                self.state.num_skipped += 1
            else:
                self.state.waiting.append(line)
        return bool(lines)

    def _submit(self) -> None:
        state = self.state
        while state.waiting and (worker := self._pool.submit(state.waiting[0])) is not None:
            job = state.waiting.popleft()
            state.running[job.id] = job
            self._output.log("started", job, worker=worker)

    def _end(self, job: Job | InvalidLine, outcome: Result | Failure | Lost) -> None:
        window = self._windows.pop(job.id, 0)
        if isinstance(outcome, Lost) and isinstance(job, Job):
            self._output.log("lost", job, window=window, reason=outcome.reason)
            self._losses[job.id, window] += outcome.counts
            if self._losses[job.id, window] < MAX_LOSSES:
                self.state.waiting.appendleft(job)
                return
            outcome = Failure(
                f"Its worker died {MAX_LOSSES} times in window {window} ({outcome.reason}). Look for memory that ran "
                f"out, or take a smaller size or shorter windows."
            )
        assert not isinstance(outcome, Lost), "a line without a job has no worker"
        row = Row.of(job, outcome)
        self.state.rows.append(row)
        if isinstance(outcome, Result):
            self.state.num_made += 1
            self._output.log("made", job, seconds=outcome.seconds, first_window=outcome.first_window)
        else:
            self.state.num_failed += 1
            self._output.log("failed", job, error=outcome.error)
            self._board.say(row)

    def _note_windows(self, progress: dict[str, Progress]) -> None:
        for id_, job in self.state.running.items():
            window = progress[id_].window if id_ in progress else 0
            if window > self._windows.get(id_, 0):
                self._windows[id_] = window
                self._output.log("window", job, window=window, num_windows=progress[id_].num_windows)
