"""The reference image: read, brought to RGB, and fitted to a size that the model was trained at."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

from ..config import Resolution
from ..errors import ConfigError, ImageError
from ..shapes import TOKEN_PIXELS

logger = logging.getLogger(__name__)

MIN_SIDE = TOKEN_PIXELS  # a picture with a side below one token shows nothing
LARGEST_SIDE = 4096
CROP_WORTH_TELLING = 0.25  # share of the picture

Buckets = Mapping[float, tuple[int, int]]
"""(height, width) by height / width."""

BUCKETS: Mapping[Resolution, Buckets] = {  # height / width -> (height, width), as published
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
    """The height and width themselves, once it is certain that they are whole tokens.

    Raises:
        ConfigError: a side is no multiple of 16, or beyond all measure.
    """
    for name, side in (("height", height), ("width", width)):
        if side > LARGEST_SIDE:
            raise ConfigError(f"{name} must be at most {LARGEST_SIDE}, got {side}. 960x960 is 720p's square.")
        if side < TOKEN_PIXELS or side % TOKEN_PIXELS:
            nearest = max(1, round(side / TOKEN_PIXELS)) * TOKEN_PIXELS
            raise ConfigError(f"{name} must be a multiple of {TOKEN_PIXELS}, got {side}. The nearest is {nearest}.")
    return height, width


def read_image(path: str | Path) -> Tensor:
    """The picture in the file, uint8 `h w c` in RGB, turned upright as its EXIF data say.

    Raises:
        ImageError: the file is missing, no picture, damaged, or too large.
    """
    try:
        with Image.open(path) as file:
            levels = _decode(ImageOps.exif_transpose(file))
    except FileNotFoundError as error:
        raise ImageError(f"There is no file {path}. Check the path.") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path} is not an image that can be read. Use PNG, JPEG or WebP.") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} is too large to be read: {error}. Make it smaller than 10000 x 10000.") from error
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's, for broken data and for exotic colour spaces
        raise ImageError(f"{path} is damaged or of an unusual kind: {error}. Save it as PNG.") from error
    return to_rgb(levels)


def to_rgb(image: Tensor) -> Tensor:
    """Any picture as uint8 `h w c` in RGB: grey is repeated, transparent parts become white.

    Args:
        image: `h w`, `h w c` or a batch `b h w c`, of which the first is taken; c = 1 (grey), 2 (grey, alpha), 3 or
            4 (RGB, alpha); uint8, or float in 0..1.

    Raises:
        ImageError: it has another shape or range, holds NaN, or has a side below 16 pixels.
    """
    if image.ndim == 4 and len(image):
        if len(image) > 1:
            logger.info("The image is a batch of %d; the first is used.", len(image))
        image = image[0]
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or not 1 <= image.shape[2] <= 4:
        shape = tuple(image.shape)
        raise ImageError(f"An image must be h w c with 1 to 4 channels, got the shape {shape}. Give an RGB picture.")
    height, width, channels = image.shape
    if min(height, width) < MIN_SIDE:
        raise ImageError(f"The image is {width}x{height} pixels. Both sides must be at least {MIN_SIDE}.")
    levels = _to_uint8(image)
    if channels in (2, 4):
        levels = _over_white(levels)
    return levels.expand(-1, -1, 3).contiguous()


def fit(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The picture at `size` (height, width): scaled until it covers it, then cut around its centre; `c h w`, -1..1.

    Args:
        image: whatever `to_rgb` takes.
        size: height and width in pixels.
    """
    rgb = to_rgb(image).cpu()
    height, width = rgb.shape[:2]
    (rows, columns), (top, left) = _cover((height, width), size)
    lost = 1 - size[0] * size[1] / (rows * columns)
    if lost > CROP_WORTH_TELLING:
        logger.info("Fitting %dx%d to %dx%d cuts off %d%% of the image.", width, height, *size[::-1], round(100 * lost))
    scaled = Image.fromarray(rgb.numpy()).resize((columns, rows), Image.Resampling.BILINEAR)
    cut = np.array(scaled.crop((left, top, left + size[1], top + size[0])))
    return (torch.from_numpy(cut).permute(2, 0, 1).float() / 255 - 0.5) * 2


def fit_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks `... h w` at `size` by the same scale and crop as the picture's, nearest; on the CPU, same dtype."""
    (rows, columns), (top, left) = _cover(mask.shape[-2:], size)
    flat = mask.cpu().reshape(1, -1, *mask.shape[-2:])
    scaled = interpolate(flat.float(), (rows, columns), mode="nearest").to(mask.dtype)
    return scaled[0, :, top : top + size[0], left : left + size[1]].reshape(*mask.shape[:-2], *size)


def _decode(picture: Image.Image) -> Tensor:
    """The picture's levels, as `to_rgb` takes them."""
    if picture.mode.startswith("I"):  # 16 bits of grey, which Pillow's own conversion would clip
        return torch.from_numpy(np.array(picture).clip(0, 65535).astype(np.float32) / 65535)
    return torch.from_numpy(np.array(picture.convert("RGBA" if picture.has_transparency_data else "RGB")))


def _cover(source: tuple[int, int], size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of the source when it just covers `size`, and the crop's top and left; as published."""
    scale = max(size[0] / source[0], size[1] / source[1])
    covering = math.ceil(scale * source[0]), math.ceil(scale * source[1])
    return covering, (round((covering[0] - size[0]) / 2), round((covering[1] - size[1]) / 2))


def _to_uint8(image: Tensor) -> Tensor:
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise ImageError(f"An image must be uint8 or float, got {image.dtype}. Convert it to uint8.")
    if not image.isfinite().all():
        raise ImageError("The image holds NaN or infinity. Whatever made it went wrong.")
    if image.min() < -0.5 or image.max() > 1.5:  # a resampler's overshoot is fine, another convention is not
        low, high = image.aminmax()
        raise ImageError(f"A float image must be in 0..1, got {low:.3g}..{high:.3g}. Divide by its largest value.")
    return (image.float().clamp(0, 1) * 255).round().to(torch.uint8)


def _over_white(image: Tensor) -> Tensor:
    """The colours without their alpha, which is the last channel: `c a + 255 (1 - a)`."""
    colors, alpha = image[..., :-1], image[..., -1:].float() / 255
    if alpha.min() < 1:
        logger.info("The image has transparent parts; they are put on white.")
    return (colors * alpha + 255 * (1 - alpha)).round().to(torch.uint8)
