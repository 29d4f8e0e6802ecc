"""Transformer block: self-attention, cross-attention to prompt and image, cross-attention to speech, feed-forward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from .attention import CrossAttention, KeyValue, SelfAttention, TextKeyValue, TextTokens
from .audio_attention import AudioCrossAttention
from .feed_forward import FeedForward
from .inputs import Constant
from .token_shares import TokenShares


class AdaptiveNorm(nn.Module):
    """Layer norm with scale and shift from the timestep; computed in float32 and rounded once."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.dim, self.eps = dim, eps

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """`norm(x) (1 + scale) + shift` of `n c`; shift and scale are `1 c` in float32."""
        return layer_norm(x.float(), (self.dim,), (1 + scale)[0], shift[0], self.eps).type_as(x)


def gated_residual(tokens: Tensor, change: Tensor, gate: Tensor) -> Tensor:
    """`tokens + change * gate`, in float32 and rounded once; gate is `1 c` in float32."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.addcmul(tokens.float(), change, gate).type_as(tokens)
    return torch.addcmul(tokens, change, gate, out=torch.empty_like(tokens))  # 3 passes over 16 bits, not 11


@dataclass(frozen=True, eq=False)
class BlockContext:
    """Positions, prompt, reference image and voices of a pass, for all blocks; the same in all steps of a window."""

    rope: Tensor  # n 1 k/2 2, see `rope.grid_rotation`
    text: Constant[TextTokens]
    image: Constant[Tensor]  # tokens of the reference image, n c
    audio: Constant[Tensor]  # audio tokens of each person and latent frame, p t n d
    token_masks: Tensor | None  # classes s; None for one voice, where no persons need to be told apart
    shares: TokenShares  # of the window's tokens, of which rope and the blocks' tokens are this device's

    def text_kv(self, block: MultiTalkBlock) -> TextKeyValue:
        """The block's keys and values of the prompt, computed in the first step."""
        return self.text.cached(block.attn2.text_kv)

    def image_kv(self, block: MultiTalkBlock) -> KeyValue:
        """The block's keys and values of the reference image, computed in the first step."""
        return self.image.cached(block.attn2.image_kv)

    def audio_kv(self, block: MultiTalkBlock) -> Constant[KeyValue]:
        """The block's keys and values of the voices, computed in the first step."""
        return self.audio.cached(block.audio_cross_attn.audio_kv)


class MultiTalkBlock(nn.Module):
    """Wan's block with an attention to speech between the one to the prompt and the feed-forward."""

    def __init__(self, dim: int, ffn_dim: int, num_heads: int, audio_dim: int, eps: float):
        super().__init__()
        self.norm1 = AdaptiveNorm(dim, eps)
        self.attn1 = SelfAttention(dim, num_heads, eps)
        self.norm2 = nn.LayerNorm(dim, eps)  # whose kernels compute 16 bits in float32
        self.attn2 = CrossAttention(dim, num_heads, eps)
        self.norm_x = nn.LayerNorm(dim, eps)
        self.audio_cross_attn = AudioCrossAttention(dim, audio_dim, num_heads)
        self.norm3 = AdaptiveNorm(dim, eps)
        self.ffn = FeedForward(dim, ffn_dim)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def modulation(self, time_projection: Tensor) -> tuple[Tensor, ...]:
        """Shift, scale and gate of the self-attention, then of the feed-forward, each `1 c` in float32."""
        return (self.scale_shift_table.float() + time_projection).unbind(1)

    def forward(self, tokens: Tensor, time_projection: Tensor, context: BlockContext) -> Tensor:
        """The tokens after the block, `n c`.

        Args:
            tokens: `n c`.
            time_projection: `1 6 c` in float32.
            context: positions, prompt, reference image and voices.
        """
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = self.modulation(time_projection)
        attn_out, reference_map = self.attn1(
            self.norm1(tokens, shift, scale), context.rope, context.token_masks, context.shares
        )
        tokens = gated_residual(tokens, attn_out, gate)
        del attn_out  # as large as the tokens
        tokens = tokens + self.attn2(self.norm2(tokens), context.text_kv(self), context.image_kv(self))
        tokens = tokens + self.audio_cross_attn(
            self.norm_x(tokens), context.audio_kv(self), reference_map, context.shares
        )
        return gated_residual(tokens, self.ffn(self.norm3(tokens, ffn_shift, ffn_scale)), ffn_gate)
