"""What a run will take: windows, forwards, time, memory and disk."""

from __future__ import annotations

from dataclasses import dataclass

from ..acceleration.presets import AccelerationOptions, make_guidance
from ..config import GenerationConfig
from ..generation.windows import Window
from ..host import readable
from ..memory.placement import GB, Footprint, Placement
from ..shapes import LatentSize

LOSSLESS_BYTES = 2.0  # a pixel in FFV1, of noisy pictures
MOTION_BYTES = 12  # a pixel of a motion frame, three floats


@dataclass(frozen=True)
class RunEstimate:
    """What a run will take.

    Attributes:
        frames: of the video, at the model's 25 a second.
        windows: frames of each window.
        size: of a window's latents.
        forwards: of the transformer in all; caches leave some of them out.
        disk_bytes: of finished windows, while the run goes on; 0 where none are kept.
        placement: where the transformer's blocks will be; None where its files are not known.
        footprint: the transformer's; None with them.
        free_bytes: of the device.
        ram_bytes: of the machine's memory, beside what the device holds.
        free_ram_bytes: of it.
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
    ram_bytes: int = 0
    free_ram_bytes: int = 0
    seconds: float | None = None

    def describe(self) -> str:
        """A line for each quantity."""
        time_needed = "not measured on this machine yet" if self.seconds is None else f"about {readable(self.seconds)}"
        kept = f"disk: up to {_gb(self.disk_bytes)} until the video is written" if self.disk_bytes else ""
        placed = "" if self.placement is None else f"memory: {self.placement.describe()} of {_gb(self.free_bytes)} free"
        lines = (
            f"windows: {len(self.windows)} of {self.windows[0]} frames for {self.frames} frames "
            f"({self.frames / 25:.1f} s) of {self.size.w * 8}x{self.size.h * 8}",
            f"forwards: at most {self.forwards}, {self.size.num_tokens} tokens each",
            f"time: {time_needed}",
            placed,
            f"RAM: about {_gb(self.ram_bytes)} of {_gb(self.free_ram_bytes)} free",
            kept,
        )
        return "\n".join(filter(None, lines))


def count_forwards(config: GenerationConfig, options: AccelerationOptions, num_windows: int) -> int:
    """Forwards of a run without what caches leave out."""
    guidance = make_guidance(options, config)
    return num_windows * sum(len(guidance.passes_at(step)) for step in range(config.sampling.steps))


def estimate(
    config: GenerationConfig, options: AccelerationOptions, windows: list[Window], target: tuple[int, int]
) -> RunEstimate:
    """What the plan and the sizes tell; memory and time are for the caller to add."""
    frames = sum(window.keep.stop - window.keep.start for window in windows)
    made, motion = sum(window.num_frames for window in windows), len(windows) * config.windows.overlap
    return RunEstimate(
        frames,
        tuple(window.num_frames for window in windows),
        LatentSize.of_video(windows[0].num_frames, *target),
        count_forwards(config, options, len(windows)),
        disk_bytes=round((made * LOSSLESS_BYTES + motion * MOTION_BYTES) * target[0] * target[1]),
    )


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / GB:.2f} GB" if num_bytes < 10 * GB else f"{num_bytes / GB:.0f} GB"
