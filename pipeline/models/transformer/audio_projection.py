"""Audio adapter: speech features of every video frame to audio tokens of every latent frame."""

from __future__ import annotations

import torch
from diffusers.models.normalization import FP32LayerNorm
from einops import rearrange
from torch import Tensor, nn

from ...shapes import VAE_STRIDE_TIME


def group_windows(windows: Tensor) -> tuple[Tensor, Tensor]:
    """The features of each latent frame, `p 1 w ...` of the first and `p t-1 w+3 ...` of the others.

    Latent frame 0 holds video frame 0 and takes its whole window. Latent frame k holds video frames 4k-3..4k: of the
    windows' w slots it takes those up to the centre of its first frame, the centres of the two middle ones, and those
    from the centre of its last one. That makes features 4k-5..4k+2 in a row for windows of five.

    Args:
        windows: `p f w ...`, the window of w features around each of f = 4n+1 video frames.
    """
    first, others = windows[:, :1], rearrange(windows[:, 1:], "p (t r) ... -> p t r ...", r=VAE_STRIDE_TIME)
    centre = windows.shape[2] // 2
    parts = (others[:, :, 0, : centre + 1], others[:, :, 1:-1, centre], others[:, :, -1, centre:])
    return first, torch.cat(parts, dim=2)


class AudioProjection(nn.Module):
    """MultiTalk's audio adapter: a small MLP on all features of a latent frame."""

    def __init__(
        self, window: int, num_features: int, hidden_dim: int, num_tokens: int, out_dim: int, is_normed: bool = True
    ):
        super().__init__()
        self.num_tokens = num_tokens
        self.proj1 = nn.Linear(window * num_features, hidden_dim)
        self.proj1_vf = nn.Linear((window + VAE_STRIDE_TIME - 1) * num_features, hidden_dim)
        self.proj2 = nn.Linear(hidden_dim, hidden_dim)
        self.proj3 = nn.Linear(hidden_dim, num_tokens * out_dim)
        self.norm = FP32LayerNorm(out_dim, eps=1e-5) if is_normed else nn.Identity()

    def forward(self, windows: Tensor) -> Tensor:
        """Audio tokens `p t n d` from `p f w layers channels`, the window of w features around each video frame."""
        first, others = (part.flatten(2) for part in group_windows(windows))
        hidden = torch.cat((self.proj1(first), self.proj1_vf(others)), dim=1).relu()
        tokens = self.proj3(self.proj2(hidden).relu())
        return self.norm(rearrange(tokens, "p t (n d) -> p t n d", n=self.num_tokens))
