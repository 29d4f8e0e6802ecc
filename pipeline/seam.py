"""The seam between two windows, faded out."""

from __future__ import annotations

import torch
from torch import Tensor

FADE_FRAMES = 8  # a third of a second


def fade_seam(frames: Tensor, last: Tensor, overlap: int) -> Tensor:
    """`frames` of a window, the new ones of which go on from the window before without a jump.

    Both windows have made the frame at `overlap - 1`. What they differ by there, which is what the VAE and the colour
    match did to it, is added to the new frames, less and less.

    Args:
        frames: `c f h w` in -1..1; the first `overlap` of them were known.
        last: `c h w`, the last frame of the window before.
        overlap: at least 1 and less than `f`.
    """
    count = min(FADE_FRAMES, frames.shape[1] - overlap)
    weights = torch.arange(count, 0, -1).to(frames) / (count + 1)
    jump = last - frames[:, overlap - 1]
    faded = frames[:, overlap : overlap + count] + weights[:, None, None] * jump[:, None]
    return torch.cat((frames[:, :overlap], faded.clamp(-1, 1), frames[:, overlap + count :]), dim=1)
