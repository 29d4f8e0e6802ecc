"""Cross-fade of the seam between two windows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

from .deflicker import motion_mask

FADE_FRAMES = 8  # a third of a second
EDGE_PIXELS = 4  # reach of the soft edge of something that moves


def fade_seam(frames: Tensor, last_frame: Tensor, overlap: int, threshold: float = 0.0) -> Tensor:
    """`frames` of a window whose new frames go on from the window before without a jump.

    Both windows contain the frame at `overlap - 1`. Their difference there, which comes from the VAE and the colour
    match, is added to the new frames with falling weight. So is the difference between the first new frame and the
    last motion frame where it is too small for motion: generated frames are a shade off the motion frames.

    Args:
        frames: `c f h w` in -1..1; the first `overlap` of them are the motion frames.
        last_frame: `c h w`, the last frame of the window before.
        overlap: at least 1 and less than `f`.
        threshold: grey levels of 255 up to which the step from the last motion frame counts as no motion; from twice as
            many on it counts as nothing else.
    """
    count = min(FADE_FRAMES, frames.shape[1] - overlap)
    weights = torch.arange(count, 0, -1).to(frames) / (count + 1)
    motion_frame, first_new = frames[:, overlap - 1], frames[:, overlap]
    step = motion_frame - first_new
    jump = last_frame - motion_frame + (1 - _wide_motion_mask(step, threshold)) * step
    faded = frames[:, overlap : overlap + count] + weights[:, None, None] * jump[:, None]
    return torch.cat((frames[:, :overlap], faded.clamp(-1, 1), frames[:, overlap + count :]), dim=1)


def _wide_motion_mask(step: Tensor, threshold: float) -> Tensor:
    """The motion mask `h w`, dilated and smoothed by `EDGE_PIXELS`: a lip moves with its edge, and leaves no ring."""
    width = 2 * EDGE_PIXELS + 1
    mask = motion_mask(step, threshold)[None]
    dilated = max_pool2d(mask, width, stride=1, padding=EDGE_PIXELS)
    return avg_pool2d(dilated, width, stride=1, padding=EDGE_PIXELS, count_include_pad=False)[0]
