"""The steps between decoded and shown frames, in their order: colours, seam, flicker."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .color import match_colors
from .deflicker import hold_still
from .seam import fade_seam

SEAM_FLICKER = 10  # how many times as much two windows differ as two frames; 11 to 15 with the small model


@dataclass(frozen=True)
class PostprocessConfig:
    """The strengths of the steps.

    Attributes:
        color_strength: 0..1, how far colours are moved to the reference image's.
        color_frames: over which colours are averaged before they are matched, an odd number.
        deflicker: grey levels of 255; smaller changes from frame to frame are held back.
        fades_seam: whether a window goes on from the one before without a jump.
    """

    color_strength: float = 1.0
    color_frames: int = 1
    deflicker: float = 0.0
    fades_seam: bool = True


def postprocess(
    frames: Tensor, reference: Tensor, motion_frames: Tensor | None, overlap: int, config: PostprocessConfig
) -> Tensor:
    """A window's frames (`c f h w`, -1..1) as they are shown.

    Args:
        frames: as decoded.
        reference: `c h w`, -1..1, the reference image.
        motion_frames: `c m h w`, the last frames of the window before, as shown; None in the first.
        overlap: frames at the start that the window before has made too; 0 in the first.
    """
    frames = match_colors(frames, reference, config.color_strength, config.color_frames)
    if motion_frames is None or not overlap:
        return hold_still(frames, frames[:, 0], config.deflicker)
    last = motion_frames[:, -1]
    if config.fades_seam:
        frames = fade_seam(frames, last, overlap, SEAM_FLICKER * config.deflicker)
    shared, new = frames.split([overlap, frames.shape[1] - overlap], dim=1)
    return torch.cat((shared, hold_still(new, last, config.deflicker)), dim=1)
