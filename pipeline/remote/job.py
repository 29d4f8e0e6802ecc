"""The thread that a remote run lives in: watched from outside, stopped by an event, never in the way of an exit."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from .answers import JobStopped
from .client import THREAD_NAME

T = TypeVar("T")

EXIT_GRACE_S = 3.0  # what an exit of the program grants to threads that are buying or cancelling

_running: set[str] = set()
_changed = threading.Condition()
_jobs: list[Job] = []


class JobMonitor:
    """What a run and its watcher share: a wish to stop, how far the run is, and whether it may be left alone."""

    def __init__(self, stop: threading.Event | None = None):
        self._stop = stop or threading.Event()
        self.fraction, self.text = 0.0, ""
        self.urgent = threading.Event()  # set while leaving would lose an id or a cancel

    @property
    def stopping(self) -> bool:
        """Whether the user wants an end."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Asks for the end; returns at once."""
        self._stop.set()

    def child(self) -> JobMonitor:
        """For a part of the run: it stops with the whole, and tells its own progress."""
        return JobMonitor(self._stop)

    def wait(self, seconds: float) -> None:
        """Sleeps, and raises JobStopped as soon as the user wants an end."""
        if self._stop.wait(seconds) if seconds > 0 else self._stop.is_set():
            raise JobStopped("The remote run was stopped.")

    def report(self, text: str, fraction: float) -> None:
        """Tells the watcher where the run stands; `fraction` (0..1) never goes back."""
        self.text, self.fraction = text, max(self.fraction, min(fraction, 1.0))

    @contextmanager
    def critical_section(self) -> Iterator[None]:
        """While this lasts, an exit of the program waits for us, a little."""
        self.urgent.set()
        try:
            yield
        finally:
            self.urgent.clear()


class Job(Generic[T]):
    """A run in a daemon thread of its own. ComfyUI makes an event loop a prompt; this outlives them all."""

    def __init__(self, work: Callable[[JobMonitor], T], monitor: JobMonitor | None = None):
        self.monitor = monitor or JobMonitor()
        self._work = work
        self._outcome: T | None = None
        self.error: BaseException | None = None  # what it ended with
        self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
        _jobs[:] = [job for job in _jobs if job.alive]
        _jobs.append(self)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread still runs."""
        return self._thread.is_alive()

    def join(self, timeout_s: float | None = None) -> None:
        """Waits for the thread."""
        self._thread.join(timeout_s)

    def result(self) -> T:
        """What the work returned, or the exception it ended with; waits for it."""
        self._thread.join()
        if self.error is not None:
            raise self.error
        return self._outcome

    def _run(self) -> None:
        try:
            self._outcome = self._work(self.monitor)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that asks for the result
            self.error = error


@contextmanager
def exclusive(job_key: str, monitor: JobMonitor) -> Iterator[None]:
    """Lets one thread at a time work at a job of this key; the others wait, and then find what it has done."""
    with _changed:
        while job_key in _running:
            monitor.report("waiting for the same job", 0)
            monitor.wait(0)
            _changed.wait(0.1)
        _running.add(job_key)
    try:
        yield
    finally:
        with _changed:
            _running.discard(job_key)
            _changed.notify_all()


@atexit.register
def _finish_critical_sections() -> None:
    """Gives threads in the middle of a purchase or a cancel the time to write it down or send it."""
    end = time.monotonic() + EXIT_GRACE_S
    for job in _jobs.copy():
        while job.alive and (job.monitor.urgent.is_set() or job.monitor.stopping) and time.monotonic() < end:
            job.join(0.05)
