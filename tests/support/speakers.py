"""Speaker masks as the published program makes them, for one person or two."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from multitalk_pack.pipeline.conditioning.reference_image import fit_mask
from multitalk_pack.pipeline.conditioning.speakers import to_latent_masks
from multitalk_pack.pipeline.shapes import LatentSize
from torch import Tensor


def published_masks(
    image_hw: tuple[int, int],
    target_hw: tuple[int, int],
    num_speakers: int,
    boxes: Sequence[tuple[float, float, float, float]] | None = None,
    margin: float = 0.05,
) -> Tensor:
    """Masks `3 h w` at the size of latents: the first person, the second, the background.

    The published boxes are named x_min, y_min, x_max, y_max and used as first row, first column, last row, last
    column. For one person all three masks are ones.
    """
    height, width = image_hw
    if num_speakers == 1:
        source = torch.ones(3, height, width)
    else:
        source = torch.zeros(3, height, width)
        for mask, (top, left, bottom, right) in zip(source, boxes or halves(height, width, margin), strict=False):
            mask[int(top) : int(bottom), int(left) : int(right)] = 1
        source[2] = (source[0] + source[1] == 0).float()
    return to_latent_masks(fit_mask(source, target_hw), LatentSize.of_video(1, *target_hw))


def halves(height: int, width: int, margin: float) -> list[tuple[float, float, float, float]]:
    """The middle of the left and of the right half, as first row, first column, last row, last column."""
    half = width // 2
    return [
        (height * margin, half * margin + half * index, height * (1 - margin), half * (1 - margin) + half * index)
        for index in range(2)
    ]
