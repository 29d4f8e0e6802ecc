"""The plan of a long video: context windows, each of which starts with the last frames of the one before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import Recipe, WindowConfig, WindowPlan
from ..errors import ConfigError
from ..shapes import nearest_num_frames

CONTEXT = torch.tensor([-2, -1, 0, 1, 2])  # the audio features that a video frame hears, relative to its own
TRAINED_NUM_FRAMES = 81
LONGEST_EQUAL_WINDOW = 97  # a little over the trained length, where it saves a window; the authors go up to 201
MIRRORED_MARGIN = 3  # the published program mirrors three audio frames more than it lacks


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
        num_frames: video frames asked for, at least 1.
        config: the sizes.
        num_features: for each speaker the rows of audio features there are. The exact plan repeats the last one where
            a window reaches past them.

    Raises:
        ConfigError: the sizes do not fit each other or the request.
    """
    if num_frames < 1 or not num_features or min(num_features) < 1:
        rows = list(num_features)
        raise ConfigError(f"A video needs at least one frame and one row of audio, got {num_frames} and {rows}.")
    if config.plan is WindowPlan.PUBLISHED:
        return _published_plan(config, [min(rows, num_frames) for rows in num_features])
    size = window_size(num_frames, config)
    starts = _starts(size, config.overlap, num_frames)
    rows = [_clamped(starts, size, count) for count in num_features]
    return _build(starts, size, config.overlap, num_frames, rows)


def window_size(num_frames: int, config: WindowConfig) -> int:
    """Frames of each window of the exact plan.

    A size that was asked for, or InfiniteTalk's 81, only shrinks to a shorter request. MultiTalk's windows are the
    fewest equal ones of at most 97 frames: 145 frames are two of 85 rather than three of 81.
    """
    longest = config.num_frames or (LONGEST_EQUAL_WINDOW if config.recipe is Recipe.MULTITALK else TRAINED_NUM_FRAMES)
    if nearest_num_frames(num_frames) <= longest:
        return nearest_num_frames(num_frames)
    _check_motion(config, longest)
    if config.num_frames or config.recipe is Recipe.INFINITETALK:
        return longest
    count = math.ceil((num_frames - config.overlap) / (longest - config.overlap))
    return nearest_num_frames(math.ceil((num_frames + config.overlap * (count - 1)) / count))


def _published_plan(config: WindowConfig, num_features: list[int]) -> list[Window]:
    size, overlap = config.num_frames or TRAINED_NUM_FRAMES, config.overlap
    _check_motion(config, size)
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
        total = _published_cut(config.recipe, total, generated, num_features)
    return _build(starts, size, overlap, total, rows)


def _published_cut(recipe: Recipe, total: int, generated: int, num_features: list[int]) -> int:
    if recipe is Recipe.INFINITETALK:
        return min(total, num_features[-1])
    missing = generated - num_features[0]
    return total - (missing + MIRRORED_MARGIN) if missing >= 0 else total


def _starts(size: int, overlap: int, num_frames: int) -> list[int]:
    return [0] if num_frames <= size else list(range(0, num_frames - overlap, size - overlap))


def _clamped(starts: list[int], size: int, num_features: int) -> list[Tensor]:
    """For each window `f 5`, the rows that its frames hear; past the ends the outermost row."""
    return [_heard(start, size).clamp(0, num_features - 1) for start in starts]


def _mirrored(starts: list[int], size: int, num_features: int) -> list[Tensor]:
    """The same, but the last window hears the rows backwards after the end."""
    rows = _clamped(starts, size, num_features)
    if len(starts) > 1:
        heard = _heard(starts[-1], size).clamp(0, 2 * num_features - 1)
        rows[-1] = torch.where(heard < num_features, heard, 2 * num_features - 1 - heard)
    return rows


def _heard(start: int, size: int) -> Tensor:
    return torch.arange(start, start + size)[:, None] + CONTEXT


def _build(starts: list[int], size: int, overlap: int, total: int, rows: list[list[Tensor]]) -> list[Window]:
    windows = []
    for index, start in enumerate(starts):
        known = overlap if index else 0
        keep = slice(known, max(known, min(size, total - start)))
        features = torch.stack([speaker[index] for speaker in rows])
        windows.append(Window(index, start, size, known, keep, features))
    return windows


def _check_motion(config: WindowConfig, size: int) -> None:
    if config.overlap >= size:
        raise ConfigError(
            f"A window of {size} frames cannot start with {config.overlap} motion frames. "
            f"Hand on fewer, or set longer windows."
        )
