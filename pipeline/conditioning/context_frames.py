"""Context frames: those that a window starts with, as latents and their mask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ConfigError
from ..shapes import MASK_CHANNELS, num_latent_frames

if TYPE_CHECKING:  # imports diffusers, which takes seconds
    from ..models.vae.video_vae import VideoCoder


def condition(vae: VideoCoder, context_frames: Tensor, num_frames: int) -> Tensor:
    """The condition of a window: `c t h w` of 4 mask channels and 16 latent channels, float32.

    Args:
        vae: the coder of frames.
        context_frames: `c k h w`, -1..1: the reference image, or the last frames of the window before.
        num_frames: frames of the window, 4n+1; those that follow the context are mid-grey.
    """
    if not 1 <= context_frames.shape[1] <= num_frames:
        raise ConfigError(f"A window of {num_frames} frames cannot start with {context_frames.shape[1]}.")
    latents = vae.encode_padded(context_frames, num_frames)
    mask = context_mask(context_frames.shape[1], num_frames).to(latents)
    return torch.cat((mask[..., None, None].expand(-1, -1, *latents.shape[2:]), latents))


def motion_latents(vae: VideoCoder, frames: Tensor) -> Tensor:
    """The latents `c t h w` of the frames (`c m h w`, -1..1, m = 4n+1) that one window hands to the next."""
    return vae.encode(frames)


def context_mask(num_context: int, num_frames: int) -> Tensor:
    """The mask of context frames, `4 t`: 1, and 0 for those that the model fills in.

    The channels are the four video frames of a latent frame. The first latent frame holds one video frame, and has its
    value in all four.
    """
    first = torch.ones(MASK_CHANNELS)
    others = (torch.arange(1, num_frames) < num_context).float()
    return torch.cat((first, others)).reshape(num_latent_frames(num_frames), MASK_CHANNELS).T.contiguous()
