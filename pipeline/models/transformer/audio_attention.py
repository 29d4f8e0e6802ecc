"""Attention to speech: each latent frame attends to the audio of its own moment (MultiTalk, arXiv:2505.22647)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .attention import KeyValue
from .inputs import Constant
from .rope import rotate, rotation
from .speakers import speaker_positions, voice_positions
from .token_shares import ON_ONE_DEVICE, TokenShares

MAX_CACHED_NUMBERS = 1 << 20  # of folded keys; more are folded anew in every step, for 14B they would be 400 MB a block


class FoldedKeyValue(NamedTuple):
    """Keys and values of one voice with the query and output projections multiplied in."""

    key: Tensor  # t (heads n) c
    offset: Tensor  # t heads n, added to the scores
    value: Tensor  # t (heads n) c
    bias: Tensor  # c, added to the result


class AudioCrossAttention(nn.Module):
    """Cross-attention of video tokens to the voices of their latent frame; of several voices, mostly their person's."""

    def __init__(self, dim: int, audio_dim: int, num_heads: int):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.q_linear = nn.Linear(dim, dim)
        self.kv_linear = nn.Linear(audio_dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        audio_kv: Constant[KeyValue],
        reference_map: Tensor | None = None,
        shares: TokenShares = ON_ONE_DEVICE,
    ) -> Tensor:
        """
        Args:
            x: `(t s) c`, t latent frames of s tokens each.
            audio_kv: from the method of this name, each `t heads n k`.
            reference_map: `classes (t s)`, see `reference_attention`; None for one voice.
            shares: of the window's tokens; x and the map are this device's.

        Returns:
            `(t s) c`, to be added to the video tokens.
        """
        key, value = audio_kv.value
        if reference_map is None and self._is_folding_faster(x, key, shares):
            is_cached = key.numel() * self.num_heads <= MAX_CACHED_NUMBERS
            return _folded_attention(x, *(audio_kv.cached(self._fold) if is_cached else self._fold(audio_kv.value)))
        query = rearrange(self.q_linear(x), "n (heads k) -> n heads k", heads=self.num_heads)
        if reference_map is not None:
            positions = speaker_positions(reference_map, shares)
            query = rotate(query, rotation(positions, self.head_dim).unsqueeze(1))
        query = rearrange(query, "(t s) heads k -> t heads s k", t=len(key))
        attn_out = scaled_dot_product_attention(query, key, value)
        return self.proj(rearrange(attn_out, "t heads s k -> (t s) (heads k)"))

    def audio_kv(self, tokens: Tensor) -> Constant[KeyValue]:
        """Keys and values of the audio tokens, `p t n d`: those of all p persons side by side, `t heads (p n) k`."""
        both = self.kv_linear(tokens)
        key, value = rearrange(both, "p t n (two heads k) -> two p t n heads k", two=2, heads=self.num_heads)
        if len(tokens) > 1:
            rope = rotation(voice_positions(len(tokens), tokens.device), self.head_dim)
            key = rotate(key, rearrange(rope, "p pairs two -> p 1 1 1 pairs two"))
        return Constant((_side_by_side(key), _side_by_side(value)))

    def _fold(self, audio_kv: KeyValue) -> FoldedKeyValue:
        """`forward` for one voice as two products of c x (heads n) for each token, not of c x c.

        `(x Wq) k^T = x (Wq k^T)` and `(a v) Wo = a (v Wo)`.
        """
        key, value = audio_kv
        into_key = self.q_linear.weight.unflatten(0, (self.num_heads, -1))
        from_value = self.proj.weight.unflatten(1, (self.num_heads, -1))
        key = key * self.head_dim**-0.5
        offset = torch.einsum("thnk,hk->thn", key, self.q_linear.bias.unflatten(0, (self.num_heads, -1)))
        key = torch.einsum("thnk,hkc->thnc", key, into_key).flatten(1, 2)
        value = torch.einsum("thnk,chk->thnc", value, from_value).flatten(1, 2)
        return FoldedKeyValue(key, offset, value, self.proj.bias)

    def _is_folding_faster(self, x: Tensor, key: Tensor, shares: TokenShares) -> bool:
        """True where folding takes fewer operations, and rounds no worse; the same on all devices of a forward.

        Measured on a CPU, 1560 tokens and 32 audio tokens a latent frame, 40 heads of 128: 3.0 times as fast in
        float32; in bfloat16 the scores are rounded on the way and the error grows 1.6 times, so there it is left.
        """
        num_keys, tokens_per_frame = key.shape[2], shares.frame_tokens(len(x) // len(key))
        fewer = tokens_per_frame * (self.head_dim - num_keys) > num_keys * self.head_dim
        return fewer and all(_is_plain_float32(layer, x) for layer in (self.q_linear, self.proj))


def _side_by_side(x: Tensor) -> Tensor:
    return rearrange(x, "p t n heads k -> t heads (p n) k")


def _folded_attention(x: Tensor, key: Tensor, offset: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """`(t s) c` of `(t s) c`, see `FoldedKeyValue`."""
    t, heads, n = offset.shape
    scores = torch.baddbmm(offset.reshape(t, 1, -1), x.unflatten(0, (t, -1)), key.mT)  # t s (heads n)
    weights = scores.unflatten(-1, (heads, n)).softmax(dim=-1).flatten(-2)
    return torch.baddbmm(bias, weights, value).flatten(0, 1)


def _is_plain_float32(layer: nn.Module, x: Tensor) -> bool:
    """True where the layer's weights can be used as they stand: not quantised, not adapted, not elsewhere."""
    return (
        type(layer) is nn.Linear and layer.weight.dtype == x.dtype == torch.float32 and layer.weight.device == x.device
    )
