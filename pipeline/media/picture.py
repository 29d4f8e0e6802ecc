"""Picture files of the usual kinds, read as sRGB."""

from __future__ import annotations

import io
import logging
import math
import struct
import warnings
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from ..errors import ImageError
from ..shapes import TOKEN_PIXELS
from .files import open_regular
from .pixels import to_uint8

logger = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "TGA", "ICO")
MIN_SIDE = TOKEN_PIXELS  # a picture with a side below one token shows nothing
MAX_PIXELS = 64 * 2**20  # 0.85 GB at the fullest; a larger JPEG is read at a half, a quarter or an eighth
COPIED_FORMATS = ("WEBP", "AVIF", "JPEG2000")  # that are decoded into memory of their decoders first
ROWS = 256  # that are worked on at once
MAX_PROFILE_BYTES = 16 * 2**20

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
PNG_OPTIONAL = 0x20  # a bit of the first letter of chunks that a picture can do without
JPEG_START, JPEG_END, JPEG_REDUCTIONS = b"\xff\xd8", b"\xff\xd9", (2, 4, 8)
FILLERS = b"\x55" * 256, b"\xaa" * 256  # of either first bit; only a picture cut short would take one for its own

PROFILE_MODES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}  # colour spaces in profiles' headers
GREY_SCALES = (1, 2**8 - 1, 2**16 - 1)  # of white, in files of numbers


def read_image(path: str | Path) -> Tensor:
    """The picture in the file, uint8 `h w c` in sRGB, turned upright as its EXIF data say; transparent parts are white.

    Raises:
        ImageError: the file is missing, no picture, cut off, or too large.
    """
    return to_rgb(read_levels(path))


def read_levels(path: str | Path) -> Tensor:
    """The picture in the file as `to_rgb` takes it, its alpha too.

    Raises:
        ImageError: the file is missing, no picture, cut off, or too large.
    """
    try:
        with open_regular(path, ImageError) as file:
            return _read(file)
    except UnidentifiedImageError as error:
        raise ImageError(f"{path} is not an image that can be read. Use PNG, JPEG or WebP.") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} is too large. At most {MAX_PIXELS / 1e6:.0f} million pixels are read.") from error
    except ImageError:
        raise
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's, for broken data and for exotic colour spaces
        raise ImageError(f"{path} is damaged or of an unusual kind: {error}. Save it as PNG.") from error


def is_picture(path: str | Path) -> bool:
    """True for a file of a kind that `read_image` takes; an animation counts, as its first picture."""
    try:
        with open_regular(path, ImageError) as file, _open(file):
            return True
    except Image.DecompressionBombError:
        return True
    except (ImageError, OSError, SyntaxError, ValueError):
        return False


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
    levels = to_levels(image)
    if channels in (2, 4):
        levels = _over_white(levels)
    return levels.expand(-1, -1, 3).contiguous()


def to_levels(image: Tensor) -> Tensor:
    """An image of any shape as uint8: of that type already, or float in 0..1.

    Raises:
        ImageError: it is of another type or range, or holds NaN or infinity.
    """
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise ImageError(f"An image must be uint8 or float, got {image.dtype}. Convert it to uint8.")
    low, high = image.aminmax() if image.numel() else (torch.zeros(()), torch.zeros(()))
    if not (low.isfinite() and high.isfinite()):
        raise ImageError("The image holds NaN or infinity. Whatever made it went wrong.")
    if low < -0.5 or high > 1.5:  # a resampler's overshoot is fine, another convention is not
        raise ImageError(f"A float image must be in 0..1, got {low:.3g}..{high:.3g}. Divide by its largest value.")
    levels = torch.empty(image.shape, dtype=torch.uint8)
    for rows, part in zip(levels.split(ROWS), image.split(ROWS), strict=True):
        rows.copy_(to_uint8(part, low=0.0))
    return levels


def _over_white(image: Tensor) -> Tensor:
    """The colours without their alpha, which is the last channel: `c a + 255 (1 - a)`."""
    if image[..., -1].amin() == 255:
        return image[..., :-1]
    logger.info("The image has transparent parts; they are put on white.")
    colors = torch.empty_like(image[..., :-1], memory_format=torch.contiguous_format)
    for rows, part in zip(colors.split(ROWS), image.split(ROWS), strict=True):
        alpha = part[..., -1:].float() / 255
        rows.copy_((part[..., :-1] * alpha + 255 * (1 - alpha)).round())
    return colors


def _read(file: BinaryIO) -> Tensor:
    """The levels of a picture, as `to_rgb` takes them, of one with flaws outside the picture too."""
    try:
        return _levels(file)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow knows no PNG in one with a damaged text
        if isinstance(error, ImageError):
            raise
        file.seek(0)
        head = file.read(len(PNG_SIGNATURE))
        if head == PNG_SIGNATURE:
            return _levels(*_picture_chunks(file))
        if head.startswith(JPEG_START):
            return _levels_before_end(file, error)
        raise


def _levels(file: BinaryIO, profile: bytes | None = None) -> Tensor:
    """The levels of a picture whose file is whole.

    Args:
        profile: its ICC profile, where the file has none.
    """
    with _open(file) as picture:
        _bound_size(picture)
        if profile is not None:
            picture.info["icc_profile"] = profile
        _set_upright(picture)
        if picture.mode == "F" or picture.mode.startswith("I"):
            return _numbers(picture)
        mode = "RGBA" if picture.has_transparency_data else "RGB"
        native = picture if picture.mode in (mode, "L", "CMYK") else picture.convert(mode)
        colors = _to_srgb(native)
        return torch.from_numpy(np.array(colors if colors.mode == mode else colors.convert(mode)))


def _open(file: BinaryIO) -> ImageFile:
    """The picture's header. Pillow refuses one beyond its own limit, but a JPEG can be read at a part of its size."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # sizes are bounded here, see `_bound_size`
            return Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        file.seek(0)
        if file.read(len(JPEG_START)) != JPEG_START:
            raise
        file.seek(0)
        return JpegImageFile(file)


def _bound_size(picture: ImageFile) -> None:
    """Raises ImageError for too many pixels; a JPEG is reduced instead, as far as its format can."""
    width, height = picture.size
    max_pixels = MAX_PIXELS // 2 if picture.format in COPIED_FORMATS else MAX_PIXELS
    for factor in JPEG_REDUCTIONS if width * height <= _max_stored(picture) else ():
        if picture.width * picture.height > max_pixels:
            picture.draft(None, (width // factor, height // factor))
    if picture.width * picture.height > max_pixels:
        raise ImageError(
            f"The image is {width}x{height}; of this kind at most {max_pixels / 1e6:.0f} million pixels are read. Make "
            f"it smaller."
        )
    if picture.size != (width, height):
        logger.info("The image is %dx%d; it is read at %dx%d.", width, height, *picture.size)


def _max_stored(picture: ImageFile) -> float:
    """Pixels of a file that is read at a part of its size: a progressive JPEG is held as a whole for all that."""
    return 2 * MAX_PIXELS if picture.info.get("progressive") else math.inf


def _set_upright(picture: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(picture, in_place=True)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, ZeroDivisionError, struct.error) as error:
        logger.info("The image's EXIF data are damaged (%s); it is taken as upright.", error)
        picture.load()


def _numbers(picture: Image.Image) -> Tensor:
    """The levels of a grey picture of 16 or 32 bits or of floats, by the range of its numbers, as floats in 0..1."""
    numbers = np.array(picture).astype(np.float32)
    lowest, highest = float(numbers.min()), float(numbers.max())
    if picture.mode.startswith("I;") or picture.format == "PNG":
        scale = GREY_SCALES[-1]
    else:
        scales = GREY_SCALES if picture.mode == "F" else GREY_SCALES[1:]
        scale = next((scale for scale in scales if highest <= scale), None)
    if scale is None or not 0 <= lowest <= highest <= scale:
        raise ImageError(f"The image holds numbers in {lowest:.3g}..{highest:.3g}. Save it as a PNG of 8 or 16 bits.")
    numbers /= scale
    return torch.from_numpy(numbers)


def _to_srgb(picture: Image.Image) -> Image.Image:
    """A picture (L, RGB, RGBA or CMYK) by its ICC profile in sRGB; itself without a profile that fits its mode."""
    profile = picture.info.get("icc_profile")
    if not profile or PROFILE_MODES.get(profile[16:20]) != picture.mode.removesuffix("A"):
        return picture
    target = "RGBA" if picture.mode == "RGBA" else "RGB"
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), picture.mode, target)
        if picture.mode == target and _keeps_colors(transform, target):
            return picture
        converted = ImageCms.applyTransform(picture, transform, inPlace=picture.mode == target)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        logger.info("The image's colour profile is damaged (%s) and not used.", error)
        return picture
    logger.info("The image's colours are converted to sRGB.")
    return converted or picture


def _keeps_colors(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """True for a transform of sRGB to itself: on a grid of colours no level changes by more than one."""
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(*[levels] * len(mode), indexing="ij"), axis=-1).reshape(-1, 81, len(mode))
    result = np.asarray(ImageCms.applyTransform(Image.fromarray(grid, mode), transform))
    return int(np.abs(result.astype(int) - grid).max()) <= 1


def _picture_chunks(file: BinaryIO) -> tuple[BinaryIO, bytes | None]:
    """A PNG without what a picture can do without and Pillow stumbles over, and its ICC profile.

    Those are texts and profiles, which may be larger than Pillow takes, and optional chunks with a wrong checksum.
    """
    file.seek(len(PNG_SIGNATURE))
    chunks, profile = io.BytesIO(), None
    chunks.write(PNG_SIGNATURE)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        content, checksum = file.read(length), file.read(4)
        is_damaged = zlib.crc32(kind + content).to_bytes(4, "big") != checksum
        if kind == b"iCCP" and not is_damaged:
            _, _, packed = content.partition(b"\0")
            profile = _unpacked_profile(packed[1:])
        elif kind not in PNG_TEXTS and not (is_damaged and kind[0] & PNG_OPTIONAL):
            chunks.write(head + content + checksum)
    chunks.seek(0)
    return chunks, profile


def _unpacked_profile(packed: bytes) -> bytes | None:
    try:
        return zlib.decompressobj().decompress(packed, MAX_PROFILE_BYTES)
    except zlib.error as error:
        logger.info("The image's colour profile is damaged (%s) and not used.", error)
        return None


def _levels_before_end(file: BinaryIO, error: Exception) -> Tensor:
    """The levels of a JPEG that lacks its end marker alone.

    Raises:
        Exception: `error`, where some of the picture is missing: what follows the data would then be seen in it.
    """
    file.seek(0)
    data = file.read().removesuffix(JPEG_END[:1])
    if data.endswith(JPEG_END):
        raise error
    levels = _levels(io.BytesIO(data + JPEG_END))
    if not all(torch.equal(levels, _levels(io.BytesIO(data + filler + JPEG_END))) for filler in FILLERS):
        raise error
    return levels
