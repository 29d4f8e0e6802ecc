"""Small changes from frame to frame, held back: what should stand still stands still."""

from __future__ import annotations

import torch
from torch import Tensor

GREY_LEVEL = 2 / 255  # of values in -1..1


def hold_still(frames: Tensor, before: Tensor, threshold: float) -> Tensor:
    """`frames`, in which a pixel keeps its value until it changes by more than `threshold`.

    A pixel moves by the `moving_share` of its difference to the frame before, as that is shown.
    A slow change gathers until it is let through, so no pixel is ever more than twice the threshold from its own value.

    Args:
        frames: `c f h w` in -1..1.
        before: `c h w`, the frame that was shown before the first of them.
        threshold: in grey levels of 255; 0 changes nothing.
    """
    if threshold == 0:
        return frames
    shown = []
    for frame in frames.unbind(dim=1):
        difference = frame - before
        before = before + moving_share(difference, threshold) * difference
        shown.append(before)
    return torch.stack(shown, dim=1)


def moving_share(difference: Tensor, threshold: float) -> Tensor:
    """How much of a difference between two frames is motion and not flicker, `h w`.

    With m the largest size of the three channels: `clamp(m / threshold - 1, 0, 1)`, nothing up to the threshold and
    all from twice the threshold on.

    Args:
        difference: `c h w`, of values in -1..1.
        threshold: in grey levels of 255; at 0 everything is motion.
    """
    size = difference.abs().amax(dim=0)
    if threshold == 0:
        return torch.ones_like(size)
    return (size / (threshold * GREY_LEVEL) - 1).clamp(0, 1)
