"""The plan of a long video: context windows, each of which starts with the last frames of the one before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from ..audio.embeds import BUFFER_FRAMES, CONTEXT_FRAMES
from ..config import AudioFeatures, WindowPlan
from ..errors import ConfigError
from ..shapes import nearest_num_frames

CONTEXT = torch.arange(
    -CONTEXT_FRAMES, CONTEXT_FRAMES + 1
)  # the audio features that a video frame hears, relative to its own
MIRRORED_MARGIN = 3  # the published program mirrors three audio frames more than it lacks


class WindowFit(Enum):
    """The length of the exact plan's windows, where the request is not just so long."""

    EQUAL = "equal"  # the fewest windows of one length: 145 frames are two of 85 rather than three of 81
    SHORTENED = "shortened"  # full windows; a request below one gets a shorter one
    FIXED = "fixed"  # full windows always, for a network that was distilled at one length


@dataclass(frozen=True)
class WindowConfig:
    """The sizes of a run's context windows, in video frames, 25 a second.

    Attributes:
        plan: exact, or the published program's.
        num_frames: of a window at most, 4n+1.
        motion_frames: that a later window shares with the one before, 4n+1.
        fit: of the exact plan.
        max_frames: where the published plan stops.
        features: whether the windows share the rows of audio features, or each has its own.
        drops_mirrored_tail: whether the published plan throws away what was generated to mirrored audio (MultiTalk),
            rather than to end with the audio (InfiniteTalk).
    """

    plan: WindowPlan = WindowPlan.EXACT
    num_frames: int = 97
    motion_frames: int = 25
    fit: WindowFit = WindowFit.EQUAL
    max_frames: int = 1000
    features: AudioFeatures = AudioFeatures.WHOLE
    drops_mirrored_tail: bool = True


@dataclass(frozen=True, eq=False)
class Window:
    """Frames that are denoised together.

    Attributes:
        index: from 0.
        start: where its first frame stands in the video.
        num_frames: 4n+1.
        overlap: its first frames that the window before has already made; 0 in the first window.
        keep: those of its frames that go into the video.
        feature_frames: `p f 5`, for each speaker and frame the rows of audio features that are heard.
    """

    index: int
    start: int
    num_frames: int
    overlap: int
    keep: slice
    feature_frames: Tensor


def plan_windows(num_frames: int, config: WindowConfig, num_features: Sequence[int]) -> list[Window]:
    """The windows of a video, in order.

    The exact plan keeps `num_frames` frames in all. The published plan, for comparison with the published program,
    takes `num_frames` for the length of the audio, stops at `config.max_frames`, lets the last window hear the end of
    the audio backwards and, with MultiTalk, loses the last frames.

    Args:
        num_frames: video frames, at least 1.
        config: the sizes.
        num_features: for each speaker the rows of audio features there are. The exact plan repeats the last one where
            a window reaches past them.

    Raises:
        ConfigError: the sizes do not fit each other or the request.
    """
    if num_frames < 1 or not num_features or min(num_features) < 1:
        rows = list(num_features)
        raise ConfigError(f"A video needs at least one frame and one row of audio, got {num_frames} and {rows}.")
    check_motion_frames(config)
    if config.plan is WindowPlan.PUBLISHED:
        return _published_plan(config, [min(rows, num_frames) for rows in num_features])
    size = window_size(num_frames, config)
    starts = _starts(size, config.motion_frames, num_frames)
    if config.features is AudioFeatures.STREAM:
        rows = [_streamed(starts, size)] * len(num_features)
    else:
        rows = [_clamped(starts, size, count) for count in num_features]
    return _build(starts, size, config.motion_frames, num_frames, rows)


def check_motion_frames(config: WindowConfig) -> None:
    """Raises `ConfigError` where a window would consist of motion frames alone."""
    if config.motion_frames >= config.num_frames:
        raise ConfigError(
            f"A window of {config.num_frames} frames cannot start with {config.motion_frames} motion frames. "
            f"Make it longer or hand on fewer."
        )


def window_size(num_frames: int, config: WindowConfig) -> int:
    """Frames of each window of the exact plan, see `WindowFit`."""
    if config.fit is WindowFit.FIXED:
        return config.num_frames
    if nearest_num_frames(num_frames) <= config.num_frames:
        return nearest_num_frames(num_frames)
    if config.fit is WindowFit.SHORTENED:
        return config.num_frames
    count = math.ceil((num_frames - config.motion_frames) / (config.num_frames - config.motion_frames))
    return nearest_num_frames(math.ceil((num_frames + config.motion_frames * (count - 1)) / count))


def _published_plan(config: WindowConfig, num_features: list[int]) -> list[Window]:
    size, overlap = config.num_frames, config.motion_frames
    if config.fit is WindowFit.FIXED:
        raise ConfigError("The published plan is MultiTalk's and InfiniteTalk's. Take the exact plan.")
    if min(num_features) <= size:
        raise ConfigError(
            f"The published plan needs audio longer than a window of {size} frames, got {min(num_features)}. "
            f"Take the exact plan, or shorter windows."
        )
    end = min(config.max_frames, num_features[0])  # the first speaker decides where the video ends
    starts = _starts(size, overlap, end)
    generated = starts[-1] + size
    rows = [_mirrored(starts, size, count) for count in num_features]
    total = min(generated, config.max_frames)
    if len(starts) > 1:
        total = _published_length(config, total, generated, num_features)
    return _build(starts, size, overlap, total, rows)


def _published_length(config: WindowConfig, total: int, generated: int, num_features: list[int]) -> int:
    if not config.drops_mirrored_tail:
        return min(total, num_features[-1])
    missing = generated - num_features[0]
    return total - (missing + MIRRORED_MARGIN) if missing >= 0 else total


def _starts(size: int, overlap: int, num_frames: int) -> list[int]:
    return [0] if num_frames <= size else list(range(0, num_frames - overlap, size - overlap))


def _clamped(starts: list[int], size: int, num_features: int) -> list[Tensor]:
    """For each window `f 5`, the rows that its frames hear; past the ends the outermost row."""
    return [_context_rows(start, size).clamp(0, num_features - 1) for start in starts]


def _streamed(starts: list[int], size: int) -> list[Tensor]:
    """For each window `f 5`, the rows of its own features, as `audio.embeds.encode_stream` makes them in a row.

    They end with the window: its last two frames do not hear what comes.
    """
    num_rows = size + CONTEXT_FRAMES
    if num_rows > BUFFER_FRAMES:
        raise ConfigError(
            f"Streamed features reach {BUFFER_FRAMES} frames back, too few for windows of {size}. Take shorter "
            f"windows, or features of the whole sound."
        )
    rows = _context_rows(CONTEXT_FRAMES, size).clamp(max=num_rows - 1)
    return [index * num_rows + rows for index in range(len(starts))]


def _mirrored(starts: list[int], size: int, num_features: int) -> list[Tensor]:
    """The same, but the last window hears the rows backwards after the end."""
    rows = _clamped(starts, size, num_features)
    if len(starts) > 1:
        last = _context_rows(starts[-1], size).clamp(0, 2 * num_features - 1)
        rows[-1] = torch.where(last < num_features, last, 2 * num_features - 1 - last)
    return rows


def _context_rows(start: int, size: int) -> Tensor:
    return torch.arange(start, start + size)[:, None] + CONTEXT


def _build(starts: list[int], size: int, overlap: int, total: int, rows: list[list[Tensor]]) -> list[Window]:
    windows = []
    for index, start in enumerate(starts):
        shared = overlap if index else 0
        keep = slice(shared, max(shared, min(size, total - start)))
        features = torch.stack([speaker[index] for speaker in rows])
        windows.append(Window(index, start, size, shared, keep, features))
    return windows
