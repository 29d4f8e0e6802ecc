"""All postprocessing of a window, in its order: colours, seam, flicker."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .color import SKIMAGE_DIGITS, match_colors
from .deflicker import deflicker
from .seam import fade_seam

SEAM_FLICKER = 10  # how many times as much two windows differ as two frames; 11 to 15 with the small model


@dataclass(frozen=True)
class PostprocessConfig:
    """Strengths of the postprocessing.

    Attributes:
        color_strength: 0 (colours as decoded) .. 1 (the reference image's).
        color_frames: number of frames, odd, that colours are averaged over before they are matched.
        color_digits: of the sRGB matrix that leads to them.
        deflicker: grey levels of 255 up to which changes from frame to frame are filtered out; 0 is off.
        fades_seam: fades the jump from the window before.
    """

    color_strength: float = 1.0
    color_frames: int = 1
    color_digits: int = SKIMAGE_DIGITS
    deflicker: float = 0.0
    fades_seam: bool = True


def postprocess(
    frames: Tensor,
    reference: Tensor,
    motion_frames: Tensor | None,
    overlap: int,
    config: PostprocessConfig,
    device: torch.device,
) -> Tensor:
    """The final frames of a window, `c f h w` in -1..1.

    Args:
        frames: as decoded.
        reference: `c h w`, -1..1, the reference image.
        motion_frames: `c m h w`, the last final frames of the window before; None in the first.
        overlap: number of frames at the start that are motion frames again; 0 in the first.
        device: that matches the colours; the frames stay where they are.
    """
    frames = match_colors(frames, reference, config.color_strength, config.color_frames, config.color_digits, device)
    if motion_frames is None or not overlap:
        return deflicker(frames, frames[:, 0], config.deflicker)
    last_frame = motion_frames[:, -1]
    if config.fades_seam:
        frames = fade_seam(frames, last_frame, overlap, SEAM_FLICKER * config.deflicker)
    new_frames = deflicker(frames[:, overlap:], last_frame, config.deflicker)
    return torch.cat((frames[:, :overlap], new_frames), dim=1)
