"""Speaker masks: a mask or a box in the picture for each speaker, and the background around them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import ImageError
from ..shapes import PATCH_SPACE, TOKEN_PIXELS, LatentSize
from .reference_image import fit_mask

logger = logging.getLogger(__name__)

MARGIN = 0.05  # of a speaker's share of the picture, left free on every side; the published `face_scale`
MIN_OVERLAP_WARNING = 0.01  # of the smaller speaker

COLORS = ((230, 60, 60), (60, 120, 230), (60, 180, 80), (240, 170, 40), (160, 80, 200), (60, 190, 200))


@dataclass(frozen=True)
class Place:
    """A speaker's place in the source picture: a mask, or a box, or, with neither, a share of its width.

    Attributes:
        mask: `h w` (or `1 h w`), 0..1 or bool, of the picture's proportions; above 0.5 is the speaker.
        box: left, top, right, bottom.
        percent: the box is in percent of the picture's sides rather than in pixels.
    """

    mask: Tensor | None = None
    box: tuple[float, float, float, float] | None = None
    percent: bool = False

    @property
    def is_marked(self) -> bool:
        """The place is more than a share of the width."""
        return self.mask is not None or self.box is not None

    def __post_init__(self) -> None:
        if self.mask is not None and self.box is not None:
            raise ImageError("A speaker has a mask and a box. Give one of them.")
        if self.box is None:
            return
        left, top, right, bottom = self.box
        if not all(map(math.isfinite, self.box)) or left >= right or top >= bottom:
            raise ImageError(
                f"A box is left, top, right, bottom with left < right and top < bottom, got {tuple(self.box)}."
            )


def count_speakers(num_voices: int, num_places: int) -> tuple[int, int]:
    """Speakers and places of a run, as `conditioning.match_speakers` makes them of voices and places."""
    if num_voices == 1 and num_places:
        return 2, 2
    return num_voices, num_places or num_voices


def speaker_masks(places: Sequence[Place], image_hw: tuple[int, int], target_hw: tuple[int, int]) -> Tensor:
    """The speakers' masks and the background's, fitted as the picture is: `p+1 h w` in float32, 0 or 1.

    Args:
        places: one for each speaker, in the order of the voices.
        image_hw: height and width of the source picture.
        target_hw: height and width that it is fitted to.

    Raises:
        ImageError: a speaker's place is empty, or nothing of it is left after the crop or at the size of tokens; the
            message names the speaker.
    """
    size = LatentSize.of_video(1, *target_hw)
    persons = []
    for index, place in enumerate(places):
        source = _paint(place, index, len(places), image_hw)
        fitted = fit_mask(source, target_hw)
        if not fitted.any():
            raise _cut_off(index, source, target_hw)
        if not to_token_masks(to_latent_masks(fitted[None], size), size).any():
            raise _too_small(index, fitted)
        persons.append(fitted)
    masks = _with_background(torch.stack(persons).float())
    _warn_of_overlaps(masks[:-1])
    if not to_token_masks(to_latent_masks(masks[-1:], size), size).any():
        logger.info("The speakers cover the whole picture: no background is left.")
    return masks


def to_latent_masks(masks: Tensor, size: LatentSize) -> Tensor:
    """Masks `classes h w` of any size at that of latents, nearest, 0 or 1 in float32."""
    return _nearest(masks, (size.h, size.w))


def to_token_masks(masks: Tensor, size: LatentSize) -> Tensor:
    """Masks `classes h w` of the size of latents at that of tokens, nearest, 0 or 1 in float32."""
    return _nearest(masks, (size.h // PATCH_SPACE, size.w // PATCH_SPACE))


def draw_places(image: Tensor, masks: Tensor) -> Tensor:
    """The picture with each speaker tinted and numbered.

    Args:
        image: uint8 `h w c`, RGB.
        masks: `p+1 h w` of the same size, as from `speaker_masks`; the last, the background, is left alone.

    Returns:
        uint8 `h w c`.
    """
    tinted = image.float()
    for index, mask in enumerate(masks[:-1]):
        color = torch.tensor(COLORS[index % len(COLORS)]).float()
        tinted = torch.where(mask[..., None] > 0, 0.6 * tinted + 0.4 * color, tinted)
    picture = Image.fromarray(tinted.round().to(torch.uint8).numpy())
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(max(12, image.shape[0] // 12))
    for index, mask in enumerate(masks[:-1]):
        row, column = mask.nonzero().float().mean(dim=0).tolist()
        draw.text((column, row), str(index + 1), (255, 255, 255), font, "mm", stroke_width=2, stroke_fill=(0, 0, 0))
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(image.shape)


def _paint(place: Place, index: int, num_speakers: int, image_hw: tuple[int, int]) -> Tensor:
    """One speaker's mask in the source picture, bool `h w`."""
    if place.mask is not None:
        return _from_mask(place.mask, index, image_hw)
    if place.box is not None:
        return _from_box(place.box, place.percent, index, image_hw)
    return _equal_share(index, num_speakers, image_hw)


def _from_mask(mask: Tensor, index: int, image_hw: tuple[int, int]) -> Tensor:
    mask = mask[0] if mask.ndim == 3 and len(mask) else mask
    if mask.ndim != 2 or 0 in mask.shape or mask.is_complex():
        raise ImageError(
            f"The mask of speaker {index + 1} must be h w, got the shape {tuple(mask.shape)} of {mask.dtype}. Give one "
            f"mask for each speaker."
        )
    inside = (mask if mask.dtype == torch.bool else mask > 0.5).cpu()
    if not inside.any():
        raise ImageError(
            f"The mask of speaker {index + 1} is empty. Paint the whole person in white. "
            f"(The mask of an image without alpha channel is empty.)"
        )
    if tuple(mask.shape) == tuple(image_hw):
        return inside
    stretch = mask.shape[0] / mask.shape[1] / (image_hw[0] / image_hw[1])
    if abs(stretch - 1) > 0.05:
        raise ImageError(
            f"The mask of speaker {index + 1} is {mask.shape[1]}x{mask.shape[0]}, "
            f"the image {image_hw[1]}x{image_hw[0]}. Make the mask for this image."
        )
    return interpolate(inside[None, None].float(), image_hw, mode="nearest")[0, 0] > 0


def _from_box(
    box: tuple[float, float, float, float], is_percent: bool, index: int, image_hw: tuple[int, int]
) -> Tensor:
    height, width = image_hw
    x_unit, y_unit = (width / 100, height / 100) if is_percent else (1, 1)
    left, right = (round(min(max(x * x_unit, 0), width)) for x in box[::2])
    top, bottom = (round(min(max(y * y_unit, 0), height)) for y in box[1::2])
    if left == right or top == bottom:
        unit = "percent" if is_percent else "pixels"
        raise ImageError(
            f"The box of speaker {index + 1}, {tuple(box)} in {unit}, holds no pixel of the image "
            f"({width}x{height}). It is left, top, right, bottom."
        )
    mask = torch.zeros(image_hw, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def _equal_share(index: int, num_speakers: int, image_hw: tuple[int, int]) -> Tensor:
    """The middle of an equal share of the width; the first speaker is on the left."""
    height, width = image_hw
    share = width // num_speakers
    left, right = int(share * MARGIN + share * index), int(share * (1 - MARGIN) + share * index)
    mask = torch.zeros(image_hw, dtype=torch.bool)
    mask[int(height * MARGIN) : int(height * (1 - MARGIN)), left:right] = True
    return mask


def _with_background(persons: Tensor) -> Tensor:
    """`p h w`, 0 or 1, and the background, the pixels of no person: `p+1 h w`."""
    return torch.cat((persons, (persons.sum(dim=0, keepdim=True) == 0).to(persons)))


def _nearest(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """On the CPU: CUDA's nearest fails on large sources."""
    return (interpolate(masks[None].float().cpu(), size, mode="nearest")[0] > 0).float()


def _cut_off(index: int, source: Tensor, target_hw: tuple[int, int]) -> ImageError:
    rows, columns = (
        100 * source.any(dim=dim).nonzero().float().mean().item() / source.shape[1 - dim] for dim in (1, 0)
    )
    return ImageError(
        f"Speaker {index + 1} is cut off: the place at {columns:.0f}% from the left and {rows:.0f}% from the top "
        f"is outside the centre that fits {target_hw[1]}x{target_hw[0]}. Crop the image yourself, or choose another "
        f"size."
    )


def _too_small(index: int, fitted: Tensor) -> ImageError:
    height, width = fitted.shape
    return ImageError(
        f"The place of speaker {index + 1} is too small: {int(fitted.sum())} of {width}x{height} pixels. "
        f"Mark the whole person, at least {2 * TOKEN_PIXELS}x{2 * TOKEN_PIXELS} pixels."
    )


def _warn_of_overlaps(persons: Tensor) -> None:
    for (first, a), (second, b) in combinations(enumerate(persons, start=1), 2):
        share = (a * b).sum() / min(a.sum(), b.sum())
        if share > MIN_OVERLAP_WARNING:
            logger.warning(
                "Speakers %d and %d overlap on %d%% of the smaller one; there the picture decides who speaks.",
                first,
                second,
                round(100 * share.item()),
            )
