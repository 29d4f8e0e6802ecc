"""Host of the engine, the program that runs it: its device, its progress display, its cancel button."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Progress:
    """Position of a run. `fraction` (0..1) covers the whole run."""

    stage: str
    fraction: float
    window: int = 0  # from 1; 0 outside the windows
    num_windows: int = 0
    step: int = 0  # from 1; 0 outside the steps
    num_steps: int = 0

    def describe(self, left_s: float | None) -> str:
        """One line: stage, window, step, and the time that is left; None leaves it out."""
        window = f"window {self.window} of {self.num_windows}" if self.num_windows else ""
        step = f"step {self.step} of {self.num_steps}" if self.step else ""
        left = "" if left_s is None or self.fraction >= 1 else f"about {format_duration(left_s)} left"
        return ", ".join(filter(None, (self.stage, window, step, left)))


class Preview(Protocol):
    """The run as it stands, made into pictures only where a host wants them."""

    def pictures(self) -> Tensor:
        """`f c h w`, -1..1, on the CPU; several move, 25 a second, and one of latents is as small as they are."""
        ...


class Host(Protocol):
    """Runs the engine: a command line, a test, or a node of ComfyUI."""

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        ...

    @property
    def can_pin(self) -> bool:
        """Permission to pin the machine's memory, which makes copies to the device faster."""
        ...

    def report(self, progress: Progress, preview: Preview | None = None) -> None:
        """Shows the progress, with the pictures of `preview` where there is one."""

    def check_cancelled(self) -> None:
        """Raises the host's own exception when the user wants the run to end."""

    def free_memory(self) -> int:
        """Bytes that can still be taken on `device`."""
        ...


class TorchHost:
    """A plain Python process, which shows nothing and is never cancelled."""

    def __init__(self, device: torch.device | str | None = None):
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return self._device

    @property
    def can_pin(self) -> bool:
        """Always."""
        return True

    def report(self, progress: Progress, preview: Preview | None = None) -> None:
        """Shows nothing."""

    def check_cancelled(self) -> None:
        """Goes on."""

    def free_memory(self) -> int:
        """Bytes free on the device, or of the machine's memory on a CPU."""
        if self._device.type == "cuda":
            cached = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
            return torch.cuda.mem_get_info(self._device)[0] + cached  # torch's own cache is ours to take
        import psutil  # the one use, and only on a CPU

        return psutil.virtual_memory().available


class RemainingTime:
    """Time left of a run, by its speed so far.

    A resumed run starts in the middle, so its speed counts from the first fraction that is asked for.

    Args:
        now: a clock in seconds that only grows.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._start: tuple[float, float] | None = None

    def left_s(self, fraction: float) -> float | None:
        """Seconds until 1, at `fraction` (0..1) of the run; None before the first progress."""
        now = self._now()
        if self._start is None:
            self._start = now, fraction
        start_s, start_fraction = self._start
        if fraction <= start_fraction:
            return None
        return (now - start_s) * (1 - fraction) / (fraction - start_fraction)


def format_duration(seconds: float) -> str:
    """`40 s`, `12 min` or `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
