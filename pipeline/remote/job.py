"""The thread that a remote run lives in: followed from outside, stopped by an event, never in the way of an exit."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar, cast

from .answers import JobInterrupted
from .exchange import THREAD_NAME

T = TypeVar("T")

EXIT_GRACE_S = 3.0  # granted by an exit of the program to threads that are buying or cancelling

_running: set[str] = set()
_end_of_job = threading.Condition()
_jobs: list[Job] = []


class JobMonitor:
    """The wish to stop, the progress and the notes of a run, for the run and for whoever follows it.

    Attributes:
        fraction: of the whole, 0..1.
        text: the present stage.
        notes: what stays worth knowing as long as the run goes.
        urgent: set while leaving would lose an id or a cancel.
    """

    def __init__(self, stop: threading.Event | None = None):
        self._stop = stop or threading.Event()
        self.fraction, self.text = 0.0, ""
        self.notes: list[str] = []
        self.urgent = threading.Event()

    @property
    def is_stopping(self) -> bool:
        """True as soon as the user wants an end."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Asks for the end; returns at once."""
        self._stop.set()

    def child(self) -> JobMonitor:
        """A monitor for a part of the run: it stops with the whole, and has its own progress."""
        return JobMonitor(self._stop)

    def wait(self, seconds: float) -> None:
        """Sleeps, and raises JobInterrupted as soon as the user wants an end."""
        if self._stop.wait(seconds) if seconds > 0 else self._stop.is_set():
            raise JobInterrupted("The remote run was stopped.")

    def report(self, text: str, fraction: float) -> None:
        """Sets the present stage; `fraction` (0..1) never goes back."""
        self.text, self.fraction = text, max(self.fraction, min(fraction, 1.0))

    @contextmanager
    def critical_section(self) -> Iterator[None]:
        """Work for which an exit of the program waits, a little."""
        self.urgent.set()
        try:
            yield
        finally:
            self.urgent.clear()


class Job(Generic[T]):
    """A run in a daemon thread of its own. ComfyUI makes an event loop a prompt; this outlives them all.

    Attributes:
        error: the exception that it ended with.
    """

    def __init__(self, work: Callable[[JobMonitor], T], monitor: JobMonitor | None = None):
        self.monitor = monitor or JobMonitor()
        self._work = work
        self._outcome: T | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
        _jobs[:] = [job for job in _jobs if job.alive]
        _jobs.append(self)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """True as long as the thread runs."""
        return self._thread.is_alive()

    def join(self, timeout_s: float | None = None) -> None:
        """Waits for the thread."""
        self._thread.join(timeout_s)

    def result(self) -> T:
        """Outcome of the work, or the exception that it ended with; waits for it."""
        self._thread.join()
        if self.error is not None:
            raise self.error
        return cast(T, self._outcome)

    def _run(self) -> None:
        try:
            self._outcome = self._work(self.monitor)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that asks for the result
            self.error = error


@contextmanager
def exclusive(job_key: str, monitor: JobMonitor) -> Iterator[None]:
    """The right of one thread at a time to work at a job; the others wait, and then find its outcome."""
    with _end_of_job:
        while job_key in _running:
            monitor.report("waiting for the same job", 0)
            monitor.wait(0)
            _end_of_job.wait(0.1)
        _running.add(job_key)
    try:
        yield
    finally:
        with _end_of_job:
            _running.discard(job_key)
            _end_of_job.notify_all()


@atexit.register
def _finish_critical_sections() -> None:
    """Gives threads in the middle of a purchase or a cancel the time to write it down or send it."""
    end = time.monotonic() + EXIT_GRACE_S
    for job in _jobs.copy():
        while job.alive and (job.monitor.urgent.is_set() or job.monitor.is_stopping) and time.monotonic() < end:
            job.join(0.05)
