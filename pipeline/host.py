"""The protocol between the engine and the program that runs it: device, progress, cancelling."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Progress:
    """A run's progress. `fraction` (0..1) covers the whole run."""

    stage: str
    fraction: float
    window: int = 0  # from 1; 0 outside the windows
    num_windows: int = 0
    step: int = 0  # from 1; 0 outside the steps
    num_steps: int = 0

    def describe(self, left_s: float | None) -> str:
        """One line: stage, window, step, and the seconds that are left where they are known."""
        window = f"window {self.window} of {self.num_windows}" if self.num_windows else ""
        step = f"step {self.step} of {self.num_steps}" if self.step else ""
        left = "" if left_s is None or self.fraction >= 1 else f"about {readable(left_s)} left"
        return ", ".join(filter(None, (self.stage, window, step, left)))


class Host(Protocol):
    """Runs the engine: a command line, a test, or a node of ComfyUI."""

    @property
    def device(self) -> torch.device:
        """The device that networks run on."""

    @property
    def can_pin(self) -> bool:
        """The machine's memory may be pinned, which makes copies to the device faster."""

    def report(self, progress: Progress, latents: Tensor | None = None, frames: Tensor | None = None) -> None:
        """Tells where the run stands.

        Args:
            latents: `c t h w`, the present guess of the clean ones, for a preview.
            frames: `c f h w`, -1..1, a finished window's, for a preview.
        """

    def check_cancelled(self) -> None:
        """Raises the host's own exception when the user wants the run to end."""

    def free_memory(self) -> int:
        """Bytes that can still be taken on `device`."""


class TorchHost:
    """Runs the engine in a plain Python process and keeps quiet."""

    def __init__(self, device: torch.device | str | None = None):
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def device(self) -> torch.device:
        """The device that networks run on."""
        return self._device

    @property
    def can_pin(self) -> bool:
        """It may."""
        return True

    def report(self, progress: Progress, latents: Tensor | None = None, frames: Tensor | None = None) -> None:
        """Tells nobody."""

    def check_cancelled(self) -> None:
        """Nobody cancels."""

    def free_memory(self) -> int:
        """Bytes free on the device, or of the machine's memory on a CPU."""
        if self._device.type == "cuda":
            unused = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
            return torch.cuda.mem_get_info(self._device)[0] + unused  # what torch keeps for itself is ours to take
        import psutil  # the one use, and only on a CPU

        return psutil.virtual_memory().available


class RemainingTime:
    """The time left of a run, from how fast it went so far.

    A run that goes on from finished windows starts in the middle, so its speed counts from where it was first seen.

    Args:
        now: seconds that only grow.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._first: tuple[float, float] | None = None

    def left_s(self, fraction: float) -> float | None:
        """Seconds until 1, at `fraction` (0..1) of the run; None as long as nothing was seen to be done."""
        now = self._now()
        if self._first is None:
            self._first = now, fraction
        began, begun_at = self._first
        if fraction <= begun_at:
            return None
        return (now - began) * (1 - fraction) / (fraction - begun_at)


def readable(seconds: float) -> str:
    """`40 s`, `12 min` or `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
