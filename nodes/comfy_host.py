"""Runs the engine inside ComfyUI: its device, its progress bar and previews, its Cancel; alone in importing `comfy`."""

from __future__ import annotations

import comfy.model_management as mm
import torch
from comfy.utils import ProgressBar
from PIL import Image
from torch import Tensor

from ..pipeline.host import Progress
from ..pipeline.preview import to_rgb

PREVIEW_SIDE = 512


class ComfyHost:
    """The engine's host inside a node's `execute`; it must be used from that node's thread."""

    def __init__(self):
        self._bar = ProgressBar(1000)

    @property
    def device(self) -> torch.device:
        """ComfyUI's compute device."""
        return mm.get_torch_device()

    def report(self, progress: Progress, latents: Tensor | None = None) -> None:
        """Moves the bar over the whole run and shows the picture as it stands."""
        preview = None if latents is None else ("JPEG", Image.fromarray(to_rgb(latents).numpy()), PREVIEW_SIDE)
        self._bar.update_absolute(round(progress.fraction * 1000), 1000, preview)

    def check_cancelled(self) -> None:
        """Raises ComfyUI's own interruption."""
        mm.throw_exception_if_processing_interrupted()

    def free_memory(self) -> int:
        """Bytes free on the device, after other nodes' models were asked to make room."""
        device = self.device
        if device.type != "cpu":
            mm.free_memory(mm.get_total_memory(device), device)
        return int(mm.get_free_memory(device))
