"""Pictures of a run as it stands, made where a host shows them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

RIDGE = 0.01  # of each latent pixel's weight; without it the early steps' noise is brighter than the picture


@dataclass(frozen=True)
class LatentPreview:
    """Latents as a picture, without the VAE, by a linear map of channels to colours that fits any VAE.

    The map is a ridge regression of a frame's pixels, at the size of latents, on the frame's latents; a window starts
    from such a frame. On the frames that the VAE decodes it is off by 18 of 255 levels, by 17 of which it is too small.

    Attributes:
        latents: `c t h w`, the present estimate of the clean ones.
        reference_latents: `c h w`, of the frame that the window starts from.
        reference: `3 h w` in pixels, -1..1, this frame.
    """

    latents: Tensor
    reference_latents: Tensor
    reference: Tensor

    def pictures(self) -> Tensor:
        """The middle latent frame, `1 3 h w` at the size of latents, -1..1."""
        colors = interpolate(self.reference[None].float(), self.reference_latents.shape[1:], mode="area")[0].flatten(1)
        weights = torch.linalg.solve(*_normal_equations(_rows(self.reference_latents), colors.T.double().cpu()))
        frame = self.latents[:, self.latents.shape[1] // 2]
        return (_rows(frame) @ weights).T.float().reshape(1, 3, *frame.shape[1:]).clamp(-1, 1)


@dataclass(frozen=True)
class FramePreview:
    """Finished frames, which move.

    Attributes:
        frames: `c f h w`, -1..1.
    """

    frames: Tensor

    def pictures(self) -> Tensor:
        """The frames, `f c h w`, -1..1."""
        return self.frames.transpose(0, 1).cpu()


def _rows(latents: Tensor) -> Tensor:
    """A row of the regression for each latent pixel: its channels and 1 for the bias, `hw c+1`."""
    return pad(latents.flatten(1).T.double().cpu(), (0, 1), value=1.0)


def _normal_equations(rows: Tensor, colors: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides of `(R^T R + ridge n I) W = R^T C`, for rows `n c` and colours `n 3`."""
    ridge = RIDGE * len(rows) * torch.eye(rows.shape[1], dtype=rows.dtype)
    return rows.T @ rows + ridge, rows.T @ colors
