"""Embeddings: latents as tokens, the timestep as modulation, prompt and reference image as context."""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers.models.embeddings import PixArtAlphaTextProjection
from diffusers.models.transformers.transformer_wan import WanImageEmbedding
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import linear, silu

CHUNK_ROWS = 4096  # of a weight that are turned to float32 at once: that of the time projection takes 0.6 GB


class Float32Linear(nn.Linear):
    """Linear layer that computes in float32, whatever its weights are stored in."""

    def forward(self, x: Tensor) -> Tensor:
        """`... out_features` in float32."""
        if self.weight.dtype is torch.float32:
            return linear(x.float(), self.weight, self.bias)
        x, chunks = x.float(), zip(self.weight.split(CHUNK_ROWS), self.bias.split(CHUNK_ROWS), strict=True)
        return torch.cat([linear(x, weight.float(), bias.float()) for weight, bias in chunks], dim=-1)


class PatchEmbedding(nn.Conv3d):
    """Patches of the input channels as tokens; linear, so that some channels can come first and others be added."""

    bias: nn.Parameter

    def __init__(self, in_channels: int, dim: int, patch_size: tuple[int, int, int]):
        super().__init__(in_channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, frames: Tensor, first_channel: int, bias: Tensor | None = None) -> Tensor:
        """Tokens `(t rows columns) dim`.

        Args:
            frames: `c t h w`, the input channels from `first_channel` on.
            bias: the tokens of the other channels, `n dim`, to be added; None adds the layer's bias.
        """
        a, b, c = self.kernel_size
        patches = rearrange(frames, "c (t a) (h b) (w d) -> (c a b d) (t h w)", a=a, b=b, d=c)
        weight = self.weight[:, first_channel : first_channel + len(frames)].flatten(1)
        return torch.addmm(self.bias if bias is None else bias, patches.T.type_as(weight), weight.T)


class TimeEmbedding(NamedTuple):
    """The embedding of a timestep, for the head, and its projection, for the blocks; in float32."""

    embedding: Tensor  # 1 c
    projection: Tensor  # 1 6 c: shift, scale, gate of the self-attention, then of the feed-forward


def sinusoid(timestep: float | Tensor, width: int) -> Tensor:
    """`[cos(t f_k), sin(t f_k)]` with `f_k = 10000^(-k/half)`, `1 width` in float32; t (0..1000) may have fractions."""
    timestep = torch.as_tensor(timestep).reshape(1, 1)
    wide = torch.float32 if timestep.device.type == "mps" else torch.float64  # MPS has no float64
    half = width // 2
    exponents = torch.arange(half, dtype=wide, device=timestep.device) / half
    angles = timestep.to(wide) * 10_000.0**-exponents
    return torch.cat((angles.cos(), angles.sin()), dim=-1).float()


class TimeEmbedder(nn.Module):
    """Two linear layers on the timestep's sinusoids, in float32."""

    def __init__(self, freq_dim: int, dim: int):
        super().__init__()
        self.linear_1 = Float32Linear(freq_dim, dim)
        self.linear_2 = Float32Linear(dim, dim)

    def forward(self, timestep: float | Tensor) -> Tensor:
        """`1 c` of a timestep in 0..1000."""
        sinusoids = sinusoid(timestep, self.linear_1.in_features).to(self.linear_1.weight.device, non_blocking=True)
        return self.linear_2(silu(self.linear_1(sinusoids)))


class ConditionEmbedder(nn.Module):
    """Embedders of timestep, prompt and reference image, each to the width of the blocks."""

    def __init__(self, dim: int, freq_dim: int, text_dim: int, image_dim: int):
        super().__init__()
        self.time_embedder = TimeEmbedder(freq_dim, dim)
        self.time_proj = Float32Linear(dim, 6 * dim)
        self.text_embedder = PixArtAlphaTextProjection(text_dim, dim, act_fn="gelu_tanh")
        self.image_embedder = WanImageEmbedding(image_dim, dim)

    def time(self, timestep: float | Tensor) -> TimeEmbedding:
        """The embedding that the head uses and the projection that every block uses."""
        embedding = self.time_embedder(timestep)
        return TimeEmbedding(embedding, self.time_proj(silu(embedding)).unflatten(-1, (6, -1)))
