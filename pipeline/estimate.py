"""What a run will take: windows, forwards, time, memory and disk."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from .acceleration.accelerate import AccelerationOptions, make_guidance
from .config import GenerationConfig
from .memory import GB, Footprint, Placement
from .sampling.windows import Window
from .shapes import LatentSize

logger = logging.getLogger(__name__)

LOSSLESS_BYTES = 2.0  # a pixel in FFV1, of noisy pictures
MEASUREMENTS = "measurements.json"


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        frames: of the video, at the model's 25 a second.
        windows: frames of each window.
        size: of a window's latents.
        forwards: of the transformer in all; caches leave some of them out.
        disk_bytes: of finished windows, while the run goes on.
        placement: where the transformer's blocks will be; None where its files are not known.
        footprint: the transformer's; None with them.
        free_bytes: of the device.
        seconds: None where no such run was measured here.
    """

    frames: int
    windows: tuple[int, ...]
    size: LatentSize
    forwards: int
    disk_bytes: int
    placement: Placement | None = None
    footprint: Footprint | None = None
    free_bytes: int = 0
    seconds: float | None = None

    @property
    def token_forwards(self) -> int:
        """Forwards times the tokens of each."""
        return self.forwards * self.size.num_tokens

    def describe(self) -> str:
        """A line for each quantity."""
        time_needed = "not measured on this machine yet" if self.seconds is None else f"about {_duration(self.seconds)}"
        placed = "" if self.placement is None else f"memory: {self.placement.describe()} of {_gb(self.free_bytes)} free"
        lines = (
            f"windows: {len(self.windows)} of {self.windows[0]} frames for {self.frames} frames "
            f"({self.frames / 25:.1f} s) of {self.size.w * 8}x{self.size.h * 8}",
            f"forwards: at most {self.forwards}, {self.size.num_tokens} tokens each",
            f"time: {time_needed}",
            placed,
            f"disk: up to {_gb(self.disk_bytes)} until the video is written",
        )
        return "\n".join(filter(None, lines))


def count_forwards(config: GenerationConfig, options: AccelerationOptions, num_windows: int) -> int:
    """Forwards of a run without what caches leave out."""
    guidance = make_guidance(options, config)
    return num_windows * sum(len(guidance.passes_at(step)) for step in range(config.sampling.steps))


def estimate(
    config: GenerationConfig, options: AccelerationOptions, windows: list[Window], target: tuple[int, int]
) -> Estimate:
    """What the plan and the sizes tell; memory and time are for the caller to add."""
    frames = sum(window.keep.stop - window.keep.start for window in windows)
    made = sum(window.num_frames for window in windows)
    return Estimate(
        frames,
        tuple(window.num_frames for window in windows),
        LatentSize.of_video(windows[0].num_frames, *target),
        count_forwards(config, options, len(windows)),
        disk_bytes=round(made * target[0] * target[1] * LOSSLESS_BYTES),
    )


class Measurements:
    """How long runs took on this machine, in a small file: seconds for a token and a forward."""

    def __init__(self, folder: Path):
        self.path = Path(folder) / MEASUREMENTS

    def seconds(self, key: str, token_forwards: int) -> float | None:
        """What a run like `key` would take; None where none was measured."""
        rate = self._read().get(key)
        return rate * token_forwards if isinstance(rate, float) and rate > 0 else None

    @contextmanager
    def measure(self, key: str, token_forwards: int) -> Iterator[None]:
        """Measures what happens inside, if it ends well."""
        started = time.monotonic()
        yield
        rates = self._read() | {key: (time.monotonic() - started) / token_forwards}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".part")
        unfinished.write_text(json.dumps(rates, indent=1), encoding="utf-8")
        unfinished.replace(self.path)

    def _read(self) -> dict[str, float]:
        try:
            rates = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError):
            logger.warning("%s cannot be read; it is written anew after the next run.", self.path)
            return {}
        return rates if isinstance(rates, dict) else {}


def machine_key(device: torch.device, footprint: Footprint, options: AccelerationOptions) -> str:
    """What runs are alike: the device, the network's size, and what leaves forwards out or makes them faster."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return (
        f"{name}, {footprint.num_blocks} blocks of {footprint.width}, {options.cache.value}, {options.attention.value}"
    )


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / GB:.2f} GB" if num_bytes < 10 * GB else f"{num_bytes / GB:.0f} GB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
