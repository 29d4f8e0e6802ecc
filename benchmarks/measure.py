"""Time and memory of several ways to the same result, measured in one run, in rounds, so that ratios can be trusted."""

from __future__ import annotations

import ctypes
import gc
import math
import platform
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

Work = Callable[[], Tensor]
"""Something to be timed, and what it gives."""

LEAST_S = 0.05  # shorter work is repeated within a round until it lasts this long
MB = 1e6


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        device: where networks run.
        threads: of the CPU.
        wall: count wall time instead of the process's CPU time, which others on the machine disturb less. On a GPU wall
            time is always counted.
        rounds: how often everything is run in turn.
        sizes: names of the sizes to run; empty takes each benchmark's own.
        peers: files with other implementations, by name, see `peers`.
    """

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    threads: int = 1
    wall: bool = False
    rounds: int = 3
    sizes: tuple[str, ...] = ()
    peers: tuple[tuple[str, Path], ...] = ()

    def clock(self) -> float:
        """Seconds; on a GPU once it has nothing left to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.perf_counter() if self.wall else time.process_time()


@dataclass(frozen=True)
class Figures:
    """One way's figures."""

    seconds: tuple[float, ...]  # of each round
    memory_mb: float  # the highest it took above what was there before
    result: Tensor

    @property
    def median_s(self) -> float:
        """Seconds of the round in the middle."""
        return median(self.seconds)


def measure(ways: Mapping[str, Work], settings: Settings) -> dict[str, Figures]:
    """The figures of all `ways`: each once for memory and result, then all in turn, in every round from another one."""
    first = {name: _with_memory(work, settings) for name, work in ways.items()}
    repeats = {name: math.ceil(LEAST_S / max(seconds, 1e-6)) for name, (_, _, seconds) in first.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(settings.rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            seconds[name].append(_timed(ways[name], repeats[name], settings))
    return {name: Figures(tuple(seconds[name]), memory, result) for name, (result, memory, _) in first.items()}


def speed_up(baseline: Figures, ours: Figures) -> float:
    """How many times as fast `ours` is: the median of the rounds' own ratios."""
    return median(theirs / own for theirs, own in zip(baseline.seconds, ours.seconds, strict=True))


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """`|got - wanted| / |wanted|`, Euclidean norms in float64."""
    got, wanted = got.double(), wanted.double()
    return ((got - wanted).norm() / wanted.norm().clamp(min=torch.finfo(torch.float64).tiny)).item()


def _timed(work: Work, repeats: int, settings: Settings) -> float:
    started = settings.clock()
    for _ in range(repeats):
        work()
    return (settings.clock() - started) / repeats


def _with_memory(work: Work, settings: Settings) -> tuple[Tensor, float, float]:
    """The result, the peak in MB, and the seconds of a call once it is warm."""
    result = work()
    gc.collect()
    started = settings.clock()
    with_peak = PeakMemory(settings.device)
    work()
    return result, with_peak.megabytes(), settings.clock() - started


class PeakMemory:
    """The highest memory since it was made, above what was there then: the process's, or the GPU's."""

    def __init__(self, device: torch.device):
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
        elif platform.system() == "Linux":
            ctypes.CDLL(None).malloc_trim(0)  # what is freed but kept would hide what is taken
            Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts anew
            self._before = process_memory("VmRSS")

    def megabytes(self) -> float:
        """MB, not a number where the system does not tell."""
        if self.device.type == "cuda":
            return (torch.cuda.max_memory_allocated(self.device) - self._before) / MB
        if platform.system() != "Linux":
            return math.nan
        return (process_memory("VmHWM") - self._before) / MB


class PrivatePeak:
    """The highest private memory inside a `with`, above what it was before; pages of files are not private. Linux."""

    def __enter__(self) -> PrivatePeak:
        self._before = self._highest = process_memory("RssAnon")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._look()
        self._ended.set()
        self._thread.join()

    def megabytes(self) -> float:
        """MB."""
        return (self._highest - self._before) / MB

    def _watch(self) -> None:
        while not self._ended.wait(0.002):
            self._look()

    def _look(self) -> None:
        self._highest = max(self._highest, process_memory("RssAnon"))


def process_memory(field: str) -> int:
    """Bytes that Linux counts under `field` of this process's status: VmRSS, VmHWM, RssAnon."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
