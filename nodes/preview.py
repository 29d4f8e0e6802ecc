"""Previews of latents, without the VAE, and of finished frames."""

from __future__ import annotations

import torch
from torch import Tensor

from ..pipeline.media.pixels import to_uint8
from ..pipeline.shapes import VAE_STRIDE_SPACE

# Red, green and blue of a Wan 2.1 latent channel: a least-squares fit as published with ComfyUI's Wan 2.1 format.
FACTORS = (
    (-0.1299, -0.1692, 0.2932), (0.0671, 0.0406, 0.0442), (0.3568, 0.2548, 0.1747), (0.0372, 0.2344, 0.1420),
    (0.0313, 0.0189, -0.0328), (0.0296, -0.0956, -0.0665), (-0.3477, -0.4059, -0.2925), (0.0166, 0.1902, 0.1975),
    (-0.0412, 0.0267, -0.1364), (-0.1293, 0.0740, 0.1636), (0.0680, 0.3019, 0.1128), (0.0032, 0.0581, 0.0639),
    (-0.1251, 0.0927, 0.1699), (0.0060, -0.0633, 0.0005), (0.3477, 0.2275, 0.2950), (0.1984, 0.0913, 0.1861),
)  # fmt: skip
BIAS = (-0.1835, -0.0868, -0.3360)


def latent_preview(latents: Tensor) -> Tensor:
    """The middle latent frame of `latents` (`c t h w`) as a picture, uint8 `h w c`, in its video's size."""
    frame = latents[:, latents.shape[1] // 2].float().cpu()
    picture = torch.einsum("chw,cr->rhw", frame, torch.tensor(FACTORS)) + torch.tensor(BIAS)[:, None, None]
    enlarged = to_uint8(picture).repeat_interleave(VAE_STRIDE_SPACE, 1).repeat_interleave(VAE_STRIDE_SPACE, 2)
    return enlarged.permute(1, 2, 0).contiguous()


def frame_preview(frames: Tensor) -> Tensor:
    """The middle one of `frames` (`c f h w`, -1..1) as a picture, uint8 `h w c`."""
    return to_uint8(frames[:, frames.shape[1] // 2]).permute(1, 2, 0).contiguous().cpu()
