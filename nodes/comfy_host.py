"""Runs the engine inside ComfyUI: its device, its progress bar and previews, its Cancel; alone in importing `comfy`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management as mm
import torch
from comfy.utils import ProgressBar
from PIL import Image
from torch import Tensor, nn

from ..pipeline.host import Progress
from ..pipeline.memory import num_bytes, resident
from ..pipeline.preview import to_rgb

PREVIEW_SIDE = 512

logger = logging.getLogger(__name__)


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
        """Bytes free on the device, after all other nodes' models were asked to make room: a run takes what it gets."""
        return self.make_room(mm.get_total_memory(self.device))

    def make_room(self, wanted: int) -> int:
        """Bytes free on the device, after other nodes' models left it as far as `wanted` bytes need it.

        ComfyUI brings its models back when it next runs them. Ours never stand in its way: they are on the device only
        while a node of ours runs, and ComfyUI runs one node at a time.
        """
        if self.device.type != "cpu":
            mm.free_memory(wanted, self.device)
        return int(mm.get_free_memory(self.device))


@contextmanager
def at_work(network: nn.Module, host: ComfyHost) -> Iterator[nn.Module]:
    """Keeps `network` on the device for a while; where it does not fit even alone, it works where it is."""
    wanted = num_bytes(network) + mm.minimum_inference_memory()
    if host.device.type == "cpu" or host.make_room(wanted) >= wanted:
        with resident(network, host):
            yield network
    else:
        logger.info("%s does not fit on %s and works on the CPU.", type(network).__name__, host.device)
        yield network
