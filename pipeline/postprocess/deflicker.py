"""Temporal filter against flicker: pixels keep their value until they change by more than a threshold."""

from __future__ import annotations

import torch
from torch import Tensor

GREY_LEVEL = 2 / 255  # of values in -1..1


def deflicker(frames: Tensor, previous: Tensor, threshold: float) -> Tensor:
    """`frames` without changes below `threshold` from one frame to the next.

    A pixel moves from its last output by `motion_mask` times its difference to that output. A slow change gathers until
    it passes, so no pixel is ever more than twice the threshold from its input.

    Args:
        frames: `c f h w` in -1..1.
        previous: `c h w`, the output of the frame before the first of them.
        threshold: in grey levels of 255; 0 changes nothing.
    """
    if threshold == 0:
        return frames
    outputs = []
    for frame in frames.unbind(dim=1):
        difference = frame - previous
        previous = previous + motion_mask(difference, threshold) * difference
        outputs.append(previous)
    return torch.stack(outputs, dim=1)


def motion_mask(difference: Tensor, threshold: float) -> Tensor:
    """Soft mask `h w` of the motion in a difference of two frames: 0 is flicker, 1 is motion.

    With m the largest magnitude of the three channels: `clamp(m / threshold - 1, 0, 1)`, nothing up to the threshold
    and all from twice the threshold on.

    Args:
        difference: `c h w`, of values in -1..1.
        threshold: in grey levels of 255; at 0 everything is motion.
    """
    magnitude = difference.abs().amax(dim=0)
    if threshold == 0:
        return torch.ones_like(magnitude)
    return (magnitude / (threshold * GREY_LEVEL) - 1).clamp(0, 1)
