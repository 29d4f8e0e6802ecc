"""Looks at the numbers of a run: latents that are not finite, frames that show nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import NumericalError

BLACK = -0.97  # a frame without a brighter value shows nothing


def check_latents(latents: Tensor, moment: str) -> None:
    """Raises `NumericalError` for latents that are not finite; `moment` says when, for people."""
    if not torch.isfinite(latents).all():
        raise NumericalError(
            f"The latents are not finite {moment}. Likely causes: float16 weights that overflow (choose bfloat16 as "
            f"precision), or a faulty attention kernel (choose math in the options)."
        )


def check_frames(frames: Tensor, source: Tensor, window: int) -> None:
    """Raises `NumericalError` for frames (`c f h w`, -1..1) that show nothing though the picture does.

    Args:
        source: `c h w`, the picture.
        window: number of the window, from 0.
    """
    if not torch.isfinite(frames).all():
        raise NumericalError("The VAE gave values that are not finite. Run it in float32.")
    num_black = int((frames.amax((0, 2, 3)) < BLACK).sum())
    if 2 * num_black > frames.shape[1] and source.max() > BLACK:
        raise NumericalError(
            f"{num_black} of {frames.shape[1]} frames of window {window + 1} are black. Likely causes: a VAE "
            f"that overflows in float16 (load it in float32 or bfloat16), or a file that is no Wan2.1 VAE."
        )
