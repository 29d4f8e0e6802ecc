"""Runs the engine inside ComfyUI: its device, its progress bar and previews, its Cancel; alone in importing `comfy`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import comfy.model_management as mm
import torch
from comfy.cli_args import args as cli_args
from comfy.utils import ProgressBar
from PIL import Image
from torch import Tensor, nn

from ..pipeline.host import Progress, RemainingTime
from ..pipeline.memory.placement import num_bytes, resident
from .preview import middle_picture, to_rgb

PREVIEW_SIDE = 512

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)


class ComfyHost:
    """The engine's host inside a node's `execute`; it must be used from that node's thread.

    Args:
        node_id: of the node on whose face the progress is told in words; None tells it by the bar alone.
    """

    def __init__(self, node_id: str | None = None):
        self._bar, self._node_id, self._remaining = ProgressBar(1000), node_id, RemainingTime()

    @property
    def device(self) -> torch.device:
        """ComfyUI's compute device."""
        return compute_device()

    @property
    def can_pin(self) -> bool:
        """ComfyUI was started without `--disable-pinned-memory`."""
        return not cli_args.disable_pinned_memory

    def report(self, progress: Progress, latents: Tensor | None = None, frames: Tensor | None = None) -> None:
        """Moves the bar over the whole run, tells what is left, and shows the picture as it stands."""
        picture = None if latents is None else to_rgb(latents)
        picture = picture if frames is None else middle_picture(frames)
        preview = None if picture is None else ("JPEG", Image.fromarray(picture.numpy()), PREVIEW_SIDE)
        self._bar.update_absolute(round(progress.fraction * 1000), 1000, preview)
        if self._node_id is not None:
            show_text(progress.describe(self._remaining.left_s(progress.fraction)), self._node_id)

    def check_cancelled(self) -> None:
        """Raises ComfyUI's own interruption."""
        mm.throw_exception_if_processing_interrupted()

    def free_memory(self) -> int:
        """Bytes free on the device, after all other nodes' models were asked to make room: a run takes what it gets.

        What ComfyUI holds back for the system and for `--reserve-vram` is not counted.
        """
        return self.make_room(mm.get_total_memory(self.device)) - _reserved(self.device)

    def make_room(self, required: int) -> int:
        """Bytes free on the device, after other nodes' models left it as far as `wanted` bytes need it.

        ComfyUI brings its models back when it next runs them. Ours never stand in its way: they are on the device only
        while a node of ours runs, and ComfyUI runs one node at a time.
        """
        if self.device.type != "cpu":
            mm.free_memory(required, self.device)
        return int(mm.get_free_memory(self.device))


class PreflightHost(ComfyHost):
    """Looks at the device without making other nodes' models leave it: a run would be given their room."""

    def free_memory(self) -> int:
        """Bytes that a run would get."""
        alive = [model for model in mm.current_loaded_models if model.device == self.device and not model.is_dead()]
        loaded = sum(model.model_loaded_memory() for model in alive)
        return int(mm.get_free_memory(self.device) + loaded) - _reserved(self.device)


def compute_device() -> torch.device:
    """ComfyUI's compute device."""
    return mm.get_torch_device()


def _reserved(device: torch.device) -> int:
    return 0 if device.type == "cpu" else int(mm.extra_reserved_memory())


def raise_when_interrupted() -> None:
    """Raises ComfyUI's own interruption, and leaves its flag to whoever else waits for it."""
    if mm.processing_interrupted():
        raise mm.InterruptProcessingException()


def allows_api_nodes() -> bool:
    """ComfyUI was started without `--disable-api-nodes`."""
    return not cli_args.disable_api_nodes


def show_text(text: str, node_id: str) -> None:
    """Shows text on the face of a node."""
    from server import PromptServer  # ComfyUI's own, which is there when a node runs

    PromptServer.instance.send_progress_text(text, node_id)


@contextmanager
def at_work(network: M, host: ComfyHost) -> Iterator[M]:
    """Keeps `network` on the device for a while; where it does not fit even alone, it works where it is."""
    required = num_bytes(network) + mm.minimum_inference_memory()
    if host.device.type == "cpu" or host.make_room(required) >= required:
        with resident(network, host):
            yield network
    else:
        logger.info("%s does not fit on %s and works on the CPU.", type(network).__name__, host.device)
        yield network
