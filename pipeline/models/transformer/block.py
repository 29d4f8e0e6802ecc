"""One of the 40 blocks: look around, look at prompt and picture, listen, think."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.models.normalization import FP32LayerNorm
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from .attention import CrossAttention, SelfAttention
from .audio_attention import AudioCrossAttention
from .feed_forward import FeedForward
from .prepared import Constant
from .speakers import speaker_positions


class AdaptiveNorm(nn.Module):
    """A layer norm whose scale and shift are told by the timestep; computed in float32 and rounded once."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.dim, self.eps = dim, eps

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """`norm(x) (1 + scale) + shift` of `n c`; shift and scale are `1 c` in float32."""
        return layer_norm(x.float(), (self.dim,), (1 + scale)[0], shift[0], self.eps).type_as(x)


@dataclass(frozen=True, eq=False)
class BlockContext:
    """What every block looks at and listens to; the same in all steps of a window's pass."""

    rope: Tensor  # n 1 k/2 2, see `rope.grid_rotation`
    text: Constant  # the prompt's `TextTokens`
    image: Constant  # tokens of the reference image, n c
    voices: Constant  # audio tokens of each person and latent frame, p t n d
    token_masks: Tensor | None  # classes s; None for one voice, where nobody has to be told apart


class MultiTalkBlock(nn.Module):
    """Wan's block with an attention to speech between the one to the prompt and the feed-forward."""

    def __init__(self, dim: int, ffn_dim: int, num_heads: int, audio_dim: int, eps: float):
        super().__init__()
        self.norm1 = AdaptiveNorm(dim, eps)
        self.attn1 = SelfAttention(dim, num_heads, eps)
        self.norm2 = FP32LayerNorm(dim, eps)
        self.attn2 = CrossAttention(dim, num_heads, eps)
        self.norm_x = FP32LayerNorm(dim, eps)
        self.audio_cross_attn = AudioCrossAttention(dim, audio_dim, num_heads)
        self.norm3 = AdaptiveNorm(dim, eps)
        self.ffn = FeedForward(dim, ffn_dim)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(self, tokens: Tensor, time_projection: Tensor, around: BlockContext) -> Tensor:
        """
        Args:
            tokens: `n c`.
            time_projection: `1 6 c` in float32.
            around: what the block looks at and listens to.

        Returns:
            `n c`.
        """
        text = around.text.cached(self.attn2.text_kv)
        image = around.image.cached(self.attn2.image_kv)
        voices = around.voices.cached(self.audio_cross_attn.audio_kv)
        modulation = self.scale_shift_table.float() + time_projection
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation.unbind(1)  # each 1 c

        seen, looks_at = self.attn1(self.norm1(tokens, shift, scale), around.rope, around.token_masks)
        tokens = gated(tokens, seen, gate)
        tokens = tokens + self.attn2(self.norm2(tokens), text, image)
        positions = None if looks_at is None else speaker_positions(looks_at)
        tokens = tokens + self.audio_cross_attn(self.norm_x(tokens), voices, positions)
        thought = self.ffn(self.norm3(tokens, ffn_shift, ffn_scale))
        return gated(tokens, thought, ffn_gate)


def gated(tokens: Tensor, change: Tensor, gate: Tensor) -> Tensor:
    """`tokens + change * gate`, in float32 and rounded once; gate is `1 c`."""
    return torch.addcmul(tokens.float(), change, gate).type_as(tokens)
