"""Time and memory of several variants of the same work, measured in rounds of one run, for ratios to rely on."""

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
"""Work to be timed; returns its result."""

LEAST_S = 0.05  # shorter work is repeated within a round until it lasts this long
MB = 1e6


@dataclass(frozen=True)
class Settings:
    """Settings of a measurement.

    Attributes:
        device: where networks run.
        threads: of the CPU.
        wall: count wall time instead of the process's CPU time, which other processes disturb less. On a GPU wall time
            is always counted.
        rounds: of all variants, one after the other.
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
        """Time in seconds; on a GPU after its last kernel."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.perf_counter() if self.wall else time.process_time()


@dataclass(frozen=True)
class Figures:
    """Figures of one variant."""

    seconds: tuple[float, ...]  # of each round
    memory_mb: float  # the peak, above the memory before
    result: Tensor

    @property
    def median_s(self) -> float:
        """Median of the rounds, in seconds."""
        return median(self.seconds)


def measure(variants: Mapping[str, Work], settings: Settings) -> dict[str, Figures]:
    """Figures of all variants: each once for memory and result, then all in rounds that start from another one each."""
    first = {name: _with_memory(work, settings) for name, work in variants.items()}
    repeats = {name: math.ceil(LEAST_S / max(seconds, 1e-6)) for name, (_, _, seconds) in first.items()}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for number in range(settings.rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            seconds[name].append(_mean_s(variants[name], repeats[name], settings))
    return {name: Figures(tuple(seconds[name]), memory, result) for name, (result, memory, _) in first.items()}


def speed_up(baseline: Figures, ours: Figures) -> float:
    """Speed of `ours` over that of the baseline: the median of the rounds' own ratios."""
    return median(baseline_s / ours_s for baseline_s, ours_s in zip(baseline.seconds, ours.seconds, strict=True))


def relative_error(result: Tensor, reference: Tensor) -> float:
    """`|result - reference| / |reference|`, Euclidean norms in float64."""
    result, reference = result.double(), reference.double()
    return ((result - reference).norm() / reference.norm().clamp(min=torch.finfo(torch.float64).tiny)).item()


def _mean_s(work: Work, repeats: int, settings: Settings) -> float:
    start_s = settings.clock()
    for _ in range(repeats):
        work()
    return (settings.clock() - start_s) / repeats


def _with_memory(work: Work, settings: Settings) -> tuple[Tensor, float, float]:
    """Result, peak in MB, and seconds of a call after a first one."""
    result = work()
    gc.collect()
    start_s = settings.clock()
    with_peak = PeakMemory(settings.device)
    work()
    return result, with_peak.megabytes(), settings.clock() - start_s


class PeakMemory:
    """Highest memory of the process or the GPU since the start of this object, above that of the start."""

    def __init__(self, device: torch.device):
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
        elif platform.system() == "Linux":
            ctypes.CDLL(None).malloc_trim(0)  # memory that the allocator holds back would hide a peak
            Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts anew
            self._before = process_memory("VmRSS")

    def megabytes(self) -> float:
        """Peak in MB; not a number where the system has no figure for it."""
        if self.device.type == "cuda":
            return (torch.cuda.max_memory_allocated(self.device) - self._before) / MB
        if platform.system() != "Linux":
            return math.nan
        return (process_memory("VmHWM") - self._before) / MB


class PrivatePeak:
    """Highest private memory inside a `with`, above that at its start; pages of files are not private. Linux."""

    def __enter__(self) -> PrivatePeak:
        self._before = self._highest = process_memory("RssAnon")
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._update()
        self._end.set()
        self._thread.join()

    def megabytes(self) -> float:
        """Peak in MB."""
        return (self._highest - self._before) / MB

    def _sample(self) -> None:
        while not self._end.wait(0.002):
            self._update()

    def _update(self) -> None:
        self._highest = max(self._highest, process_memory("RssAnon"))


def process_memory(field: str) -> int:
    """Bytes under `field` of this process's status in Linux: VmRSS, VmHWM, RssAnon."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
