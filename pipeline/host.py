"""What the engine asks of whoever runs it: a device, a place to tell progress, a chance to stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .clock import readable


@dataclass(frozen=True)
class Progress:
    """Where a run stands. `fraction` (0..1) covers the whole run."""

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
        """Where networks run."""

    @property
    def pins(self) -> bool:
        """Whether the machine's memory may be pinned, which makes copies to the device faster."""

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
        """Where networks run."""
        return self._device

    @property
    def pins(self) -> bool:
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
