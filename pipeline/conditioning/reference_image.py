"""The reference image, or the frames of a video, fitted to a size that the model was trained at."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from ..config import Resolution
from ..errors import ConfigError, ImageError
from ..media.picture import MAX_PIXELS, to_rgb
from ..media.pixels import from_uint8
from ..shapes import TOKEN_PIXELS

logger = logging.getLogger(__name__)

LARGEST_SIDE = 4096
NOTABLE_CROP = 0.25  # share of the picture

Buckets = Mapping[float, tuple[int, int]]
"""(height, width) by height / width."""

BUCKETS: Mapping[Resolution, Buckets] = {  # as published
    Resolution.P480: {
        0.26: (320, 1216), 0.38: (384, 1024), 0.50: (448, 896), 0.67: (512, 768), 0.82: (576, 704),
        1.00: (640, 640), 1.22: (704, 576), 1.50: (768, 512), 1.86: (832, 448), 2.00: (896, 448),
        2.50: (960, 384), 2.83: (1088, 384), 3.60: (1152, 320), 3.80: (1216, 320), 4.00: (1280, 320),
    },
    Resolution.P720: {
        0.22: (448, 2048), 0.29: (512, 1792), 0.36: (576, 1600), 0.45: (640, 1408), 0.55: (704, 1280),
        0.63: (768, 1216), 0.76: (832, 1088), 0.88: (896, 1024), 1.00: (960, 960), 1.14: (1024, 896),
        1.31: (1088, 832), 1.50: (1152, 768), 1.58: (1216, 768), 1.82: (1280, 704), 1.91: (1344, 704),
        2.20: (1408, 640), 2.30: (1472, 640), 2.67: (1536, 576), 2.89: (1664, 576), 3.62: (1856, 512),
        3.75: (1920, 512),
    },
}  # fmt: skip


def bucket(height: int, width: int, buckets: Buckets) -> tuple[int, int]:
    """The height and width to generate at: those of the nearest height / width; the first wins a tie."""
    return buckets[min(buckets, key=lambda ratio: abs(ratio - height / width))]


def check_size(height: int, width: int) -> tuple[int, int]:
    """The height and width themselves.

    Raises:
        ConfigError: a side is no multiple of 16, or above 4096.
    """
    faults = []
    for name, side in (("width", width), ("height", height)):
        if side > LARGEST_SIDE:
            faults.append(f"{name} must be at most {LARGEST_SIDE}, got {side}. 960x960 is 720p's square.")
        elif side < TOKEN_PIXELS or side % TOKEN_PIXELS:
            nearest = max(1, round(side / TOKEN_PIXELS)) * TOKEN_PIXELS
            faults.append(f"{name} must be a multiple of {TOKEN_PIXELS}, got {side}. The nearest is {nearest}.")
    if faults:
        raise ConfigError(" ".join(faults))
    return height, width


def fit(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The picture at `size` (height, width): scaled until it covers it, then cut around its centre; `c h w`, -1..1.

    Args:
        image: whatever `to_rgb` takes.
        size: height and width in pixels.

    Raises:
        ImageError: it is no picture, or so long that scaling it would take more pixels than are read from a file.
    """
    return from_uint8(_fitted(to_rgb(image), size).permute(2, 0, 1))


def fit_frames(frames: Iterable[Tensor], num_frames: int, size: tuple[int, int]) -> Tensor:
    """The frames of a video, each as by `fit`, in bytes: uint8 `f h w c`, a quarter of the floats.

    Args:
        frames: `num_frames` pictures, each whatever `to_rgb` takes; one is held at a time.
    """
    fitted = torch.empty(num_frames, *size, 3, dtype=torch.uint8)
    for target, frame in zip(fitted, frames, strict=True):
        target.copy_(_fitted(to_rgb(frame), size))
    return fitted


def fit_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks `... h w` at `size` by the same scale and crop as the picture's, nearest; on the CPU, same dtype."""
    height, width = mask.shape[-2:]
    (rows, columns), (top, left) = _cover((height, width), size)
    source_rows = _nearest(height, rows)[top : top + size[0]]
    source_columns = _nearest(width, columns)[left : left + size[1]]
    return mask.cpu()[..., source_rows, :][..., source_columns]


def _fitted(rgb: Tensor, size: tuple[int, int]) -> Tensor:
    """A picture, uint8 `h w c`, at `size`."""
    height, width, _ = rgb.shape
    (rows, columns), (top, left) = _cover((height, width), size)
    lost = 1 - size[0] * size[1] / (rows * columns)
    if lost > NOTABLE_CROP:
        logger.info("Fitting %dx%d to %dx%d cuts off %d%% of the image.", width, height, *size[::-1], round(100 * lost))
    scaled = Image.fromarray(rgb.cpu().numpy()).resize((columns, rows), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(scaled.crop((left, top, left + size[1], top + size[0]))))


def _nearest(source: int, target: int) -> Tensor:
    """The index of the source pixel for each of `target` pixels, as PyTorch's nearest interpolation has it."""
    indices = torch.arange(source, dtype=torch.float64)[None, None]
    return interpolate(indices, target, mode="nearest")[0, 0].long()


def _cover(source: tuple[int, int], size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of the source when it just covers `size`, and the crop's top and left; as published."""
    scale = max(size[0] / source[0], size[1] / source[1])
    rows, columns = math.ceil(scale * source[0]), math.ceil(scale * source[1])
    if rows * columns > MAX_PIXELS:
        raise ImageError(
            f"The image is {source[1]}x{source[0]}, and {size[1]}x{size[0]} would be cut from {columns}x{rows}. Crop "
            f"it to the shape of the video first."
        )
    return (rows, columns), (round((rows - size[0]) / 2), round((columns - size[1]) / 2))
