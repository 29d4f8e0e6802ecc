"""The estimate of a run: windows, forwards, time, memory and disk."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..generation.run_spec import RunSpec
from ..host import format_duration
from ..memory.placement import GB, Footprint, Placement
from ..shapes import VAE_STRIDE_SPACE, LatentSize

LOSSLESS_BYTES = 2.0  # a pixel in FFV1, of noisy pictures
MOTION_BYTES = 12  # a pixel of a motion frame, three floats


@dataclass(frozen=True)
class RunEstimate:
    """The work, the time and the room that a run takes.

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
        is_timed: it is measured, and the next of its kind then has `seconds`.
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
    is_timed: bool = False
    seconds: float | None = None

    @property
    def height(self) -> int:
        """Pixels."""
        return self.size.h * VAE_STRIDE_SPACE

    @property
    def width(self) -> int:
        """Pixels."""
        return self.size.w * VAE_STRIDE_SPACE

    def headline(self) -> str:
        """The run in one line that a node's face has room for: frames, windows, time and memory."""
        windows = "1 window" if len(self.windows) == 1 else f"{len(self.windows)} windows"
        duration = "" if self.seconds is None else f"about {format_duration(self.seconds)}"
        memory = "" if self.placement is None else f"{_gb(self.placement.estimate)} of {_gb(self.free_bytes)}"
        return ", ".join(filter(None, (f"{self.frames} frames", windows, duration, memory)))

    def describe(self) -> str:
        """A line for each quantity."""
        duration = "time: not measured on this machine yet" if self.is_timed else ""
        if self.seconds is not None:
            duration = f"time: about {format_duration(self.seconds)}"
        disk = f"disk: up to {_gb(self.disk_bytes)} until the video is written" if self.disk_bytes else ""
        memory = "" if self.placement is None else f"memory: {self.placement.describe()} of {_gb(self.free_bytes)} free"
        lines = (
            (
                f"windows: {len(self.windows)} of {self.windows[0]} frames for {self.frames} frames "
                f"({self.frames / 25:.1f} s) of {self.width}x{self.height}"
            ),
            f"forwards: at most {self.forwards}, {self.size.num_tokens} tokens each",
            duration,
            memory,
            f"RAM: about {_gb(self.ram_bytes)} of {_gb(self.free_ram_bytes)} free",
            disk,
        )
        return "\n".join(filter(None, lines))


def count_forwards(spec: RunSpec) -> int:
    """Forwards of a run without what caches leave out."""
    guidance = spec.new_guidance()
    return len(spec.windows) * sum(len(guidance.passes_at(step)) for step in range(spec.steps))


def estimate(spec: RunSpec) -> RunEstimate:
    """The figures that follow from the windows and their size; memory and time are added later."""
    windows = spec.windows
    size = spec.latent_size(windows[0])
    computed = sum(window.num_frames for window in windows)
    motion = len(windows) * spec.windows_config.motion_frames
    run = RunEstimate(
        sum(window.keep.stop - window.keep.start for window in windows),
        tuple(window.num_frames for window in windows),
        size,
        count_forwards(spec),
        disk_bytes=0,
    )
    return replace(run, disk_bytes=round((computed * LOSSLESS_BYTES + motion * MOTION_BYTES) * run.height * run.width))


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / GB:.2f} GB" if num_bytes < 10 * GB else f"{num_bytes / GB:.0f} GB"
