"""ComfyUI as the engine's host: its device, progress bar, previews and Cancel. No other file imports `comfy`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, TypeVar

import comfy.model_management as mm
import torch
from comfy.cli_args import args as cli_args
from comfy.utils import ProgressBar
from comfy_execution.utils import get_executing_context
from PIL import Image
from torch import Tensor, nn

from ..pipeline.host import Preview, Progress, RemainingTime
from ..pipeline.media.pixels import to_uint8
from ..pipeline.memory.placement import num_bytes, resident
from ..pipeline.shapes import FPS

PREVIEW_SIDE = 512  # pixels, to which ComfyUI scales a picture bilinearly
MOVING_SIDE = 320  # pixels of pictures that move
EVERY = 3  # of 25 frames a second is shown

Network = TypeVar("Network", bound=nn.Module)

logger = logging.getLogger(__name__)


class ComfyHost:
    """The engine's host inside a node's `execute`; it must be used from that node's thread.

    Args:
        keeps_windows: an interrupted run can go on from its finished windows.
    """

    def __init__(self, keeps_windows: bool = False):
        self._bar, self._remaining, self._keeps_windows = ProgressBar(1000), RemainingTime(), keeps_windows
        self._progress, self._headline = Progress("", 0), ""

    @property
    def device(self) -> torch.device:
        """ComfyUI's compute device."""
        return compute_device()

    @property
    def can_pin(self) -> bool:
        """False where ComfyUI was started with `--disable-pinned-memory`."""
        return not cli_args.disable_pinned_memory

    def report(self, progress: Progress, preview: Preview | None = None) -> None:
        """Moves the bar, and shows the time left and the present picture.

        Raises ComfyUI's own interruption, as `check_cancelled`; the bar would do so without a word on the node.
        """
        self._progress = progress
        self.check_cancelled()
        picture = None if preview is None else _to_image(preview.pictures())
        self._bar.update_absolute(round(progress.fraction * 1000), 1000, picture)
        line = progress.describe(self._remaining.left_s(progress.fraction))
        show_text("\n".join(filter(None, (self._headline, line))))

    def show_headline(self, text: str) -> None:
        """Shows what is known before the first step; it stays above the progress."""
        self._headline = text
        show_text(text)

    def check_cancelled(self) -> None:
        """Raises ComfyUI's own interruption, once the node shows what is left of the run."""
        if mm.processing_interrupted():
            window, num_windows = self._progress.window, self._progress.num_windows
            kept = f"; {window - 1} of {num_windows} windows kept" if self._keeps_windows and window else ""
            show_text(f"cancelled{kept}")
        mm.throw_exception_if_processing_interrupted()

    def free_memory(self) -> int:
        """Bytes free on the device without ComfyUI's reserve, after all other nodes' models were unloaded."""
        return self.unload_others(mm.get_total_memory(self.device)) - _reserved_bytes(self.device)

    def unload_others(self, num_bytes: float) -> int:
        """Bytes free on the device, after other nodes' models were unloaded until `num_bytes` are free.

        ComfyUI loads its models again when it next runs them. Ours never stand in its way: they are on the device only
        while a node of ours runs, and ComfyUI runs one node at a time.
        """
        if self.device.type != "cpu":
            mm.free_memory(num_bytes, self.device)
        return int(mm.get_free_memory(self.device))


class PreflightHost(ComfyHost):
    """Host of a preflight, which unloads no models and counts their memory as free."""

    def free_memory(self) -> int:
        """Bytes that a run would have."""
        alive = [model for model in mm.current_loaded_models if model.device == self.device and not model.is_dead()]
        loaded_bytes = sum(model.model_loaded_memory() for model in alive)
        return int(mm.get_free_memory(self.device) + loaded_bytes) - _reserved_bytes(self.device)


def compute_device() -> torch.device:
    """ComfyUI's compute device."""
    return mm.get_torch_device()


def _reserved_bytes(device: torch.device) -> int:
    """ComfyUI's reserve on a GPU for the system and for `--reserve-vram`."""
    return 0 if device.type == "cpu" else int(mm.extra_reserved_memory())


def raise_when_interrupted() -> None:
    """Raises ComfyUI's own interruption without clearing its flag, which others wait for too."""
    if mm.processing_interrupted():
        raise mm.InterruptProcessingException


def allows_api_nodes() -> bool:
    """False where ComfyUI was started with `--disable-api-nodes`."""
    return not cli_args.disable_api_nodes


def executing_node_id() -> str:
    """The id of the node that is being run."""
    context = get_executing_context()
    assert context is not None, "called while a node is run"
    return context.node_id


def show_text(text: str) -> None:
    """Shows text on the face of the node that is being run."""
    from server import PromptServer  # importable only inside a running ComfyUI

    PromptServer.instance.send_progress_text(text, executing_node_id())


def running_graph() -> Mapping[str, Any]:
    """The graph that is being run, as the queue has it: node ids to `class_type` and `inputs`."""
    from server import PromptServer

    running, _ = PromptServer.instance.prompt_queue.get_current_queue_volatile()
    return running[0][2] if running else {}


class MovingPicture(Image.Image):
    """Several pictures in the place of one, for ComfyUI's preview: saved, they are an animated WebP."""

    def __init__(self, pictures: Sequence[Image.Image], duration_ms: float):
        super().__init__()
        self.pictures, self.duration_ms = pictures, duration_ms

    def save(self, fp: IO[bytes], format: str | None = None, **params: object) -> None:
        """Writes all pictures; the options of a single one are not those of several."""
        first, *others = self.pictures
        first.save(
            fp, "WEBP", save_all=True, append_images=others, duration=round(self.duration_ms), loop=0, quality=70
        )


def _to_image(pictures: Tensor) -> tuple[str, Image.Image, int | None]:
    """Pictures `f c h w` as ComfyUI takes a preview: format, picture, and the side that it scales it to."""
    if len(pictures) == 1:
        return "JPEG", _to_pillow(pictures[0]), PREVIEW_SIDE
    stills = [_to_pillow(picture) for picture in pictures[::EVERY]]
    for picture in stills:
        picture.thumbnail((MOVING_SIDE, MOVING_SIDE))
    return "WEBP", MovingPicture(stills, 1000 * EVERY / FPS), None


def _to_pillow(picture: Tensor) -> Image.Image:
    return Image.fromarray(to_uint8(picture).permute(1, 2, 0).contiguous().numpy())


@contextmanager
def at_work(network: Network, host: ComfyHost) -> Iterator[Network]:
    """Keeps `network` on the device inside the block; one that does not fit even alone stays on the CPU."""
    needed_bytes = num_bytes(network) + mm.minimum_inference_memory()
    if host.device.type == "cpu" or host.unload_others(needed_bytes) >= needed_bytes:
        with resident(network, host):
            yield network
    else:
        logger.info("%s does not fit on %s and works on the CPU.", type(network).__name__, host.device)
        yield network
