"""The seam between two windows, faded out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

from .deflicker import moving_share

FADE_FRAMES = 8  # a third of a second
EDGE_PIXELS = 4  # how far the soft edge of something that moves reaches


def fade_seam(frames: Tensor, last: Tensor, overlap: int, still: float = 0.0) -> Tensor:
    """`frames` of a window, the new ones of which go on from the window before without a jump.

    Both windows have made the frame at `overlap - 1`. What they differ by there, which is what the VAE and the colour
    match did to it, is added to the new frames, less and less. So is what the first new frame differs by from the last
    known one where that is too little to be motion: what was told and what is made up differ by a shade.

    Args:
        frames: `c f h w` in -1..1; the first `overlap` of them were known.
        last: `c h w`, the last frame of the window before.
        overlap: at least 1 and less than `f`.
        still: grey levels of 255 up to which a step from the last known frame is no motion; from twice as many on it is
            nothing else.
    """
    count = min(FADE_FRAMES, frames.shape[1] - overlap)
    weights = torch.arange(count, 0, -1).to(frames) / (count + 1)
    known, first = frames[:, overlap - 1], frames[:, overlap]
    jump = last - known + (1 - _motion_around(known - first, still)) * (known - first)
    faded = frames[:, overlap : overlap + count] + weights[:, None, None] * jump[:, None]
    return torch.cat((frames[:, :overlap], faded.clamp(-1, 1), frames[:, overlap + count :]), dim=1)


def _motion_around(step: Tensor, still: float) -> Tensor:
    """The share of motion, `h w`, of what is nearest to each pixel: a lip moves with its edge, and leaves no ring."""
    width = 2 * EDGE_PIXELS + 1
    share = moving_share(step, still)[None]
    nearest = max_pool2d(share, width, stride=1, padding=EDGE_PIXELS)
    return avg_pool2d(nearest, width, stride=1, padding=EDGE_PIXELS, count_include_pad=False)[0]
