"""Wan's two attentions: of the video to itself, and of the video to the prompt and the reference image."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .rope import rotate
from .scaled_dot_product import Attend
from .speakers import reference_attention
from .token_shares import ON_ONE_DEVICE, TokenShares

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one attention layer, each `b heads n k`."""


class TextTokens(NamedTuple):
    """Tokens of a prompt, of which the last one, the padding, stands for several."""

    tokens: Tensor  # n c
    num_padding: int  # how many tokens the last one stands for; from 0


class TextKeyValue(NamedTuple):
    """Keys and values of a prompt."""

    key: Tensor  # 1 heads n k
    value: Tensor  # 1 heads n k
    weight: Tensor | None  # 1 1 1 n, added to the scores; None counts every token once


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """`n (heads k)` as a batch of one, `1 heads n k`."""
    return rearrange(x, "n (heads k) -> 1 heads n k", heads=num_heads)


def merge_heads(x: Tensor) -> Tensor:
    """`1 heads n k` as `n (heads k)`."""
    return rearrange(x, "1 heads n k -> n (heads k)")


class SelfAttention(nn.Module):
    """Self-attention over all tokens of the window, with rotary position embeddings."""

    def __init__(self, dim: int, num_heads: int, eps: float, attend: Attend = scaled_dot_product_attention):
        super().__init__()
        self.num_heads, self.attend = num_heads, attend
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.norm_q, self.norm_k = (nn.RMSNorm(dim, eps=eps) for _ in range(2))
        self.to_out = nn.Sequential(nn.Linear(dim, dim))

    def forward(
        self, x: Tensor, rope: Tensor, token_masks: Tensor | None = None, shares: TokenShares = ON_ONE_DEVICE
    ) -> tuple[Tensor, Tensor | None]:
        """
        Args:
            x: `n c`.
            rope: `n 1 k/2 2`, see `rope.grid_rotation`.
            token_masks: `classes s`: persons, then background, in the first latent frame. None for one voice.
            shares: of the window's tokens; x and rope are this device's.

        Returns:
            `n c`, and the reference map `classes n` (see `reference_attention`), None without masks.
        """
        query = self._rotate(self.norm_q(self.to_q(x)), rope).type_as(x)
        key = self._rotate(self.norm_k(self.to_k(x)), rope).type_as(x)
        attn_out = shares.attend(self.attend, query, key, split_heads(self.to_v(x), self.num_heads))
        reference_map = None
        if token_masks is not None:
            reference_map = reference_attention(query, shares.first_frame(key), token_masks)
        return self.to_out(merge_heads(attn_out)), reference_map

    def _rotate(self, x: Tensor, rope: Tensor) -> Tensor:
        heads = rotate(rearrange(x, "n (heads k) -> n heads k", heads=self.num_heads), rope)
        return rearrange(heads, "n heads k -> 1 heads n k")


class CrossAttention(nn.Module):
    """Cross-attention to the prompt and to the reference image: one query, two attentions, their results added."""

    def __init__(self, dim: int, num_heads: int, eps: float, attend: Attend = scaled_dot_product_attention):
        super().__init__()
        self.num_heads, self.attend = num_heads, attend
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.norm_q, self.norm_k = (nn.RMSNorm(dim, eps=eps) for _ in range(2))
        self.add_k_proj, self.add_v_proj = (nn.Linear(dim, dim) for _ in range(2))
        self.norm_added_k = nn.RMSNorm(dim, eps=eps)
        self.to_out = nn.Sequential(nn.Linear(dim, dim))

    def forward(self, x: Tensor, text_kv: TextKeyValue, image_kv: KeyValue) -> Tensor:
        """`n c` from `n c`, with the keys and values that the methods of these names return."""
        query = split_heads(self.norm_q(self.to_q(x)).type_as(x), self.num_heads)
        attn_out = self._attend_to_text(query, *text_kv) + self.attend(query, *image_kv)
        return self.to_out(merge_heads(attn_out))

    def text_kv(self, text: TextTokens) -> TextKeyValue:
        """Keys and values of a prompt with its padding.

        On a CPU in float32 the padding is one key whose score grows by the logarithm of their number: the same
        softmax with a tenth of the keys. The kernels of a GPU want no weights, and bfloat16 is too coarse for them.
        """
        tokens, num_padding = text
        weight = None
        if tokens.device.type == "cpu" and tokens.dtype is torch.float32 and num_padding:
            weight = tokens.new_zeros(1, 1, 1, len(tokens))
            weight[..., -1] = math.log(num_padding)
        else:
            tokens = torch.cat((tokens[:-1], tokens[-1:].expand(num_padding, -1)))
        key, value = self.norm_k(self.to_k(tokens)).type_as(tokens), self.to_v(tokens)
        return TextKeyValue(split_heads(key, self.num_heads), split_heads(value, self.num_heads), weight)

    def image_kv(self, tokens: Tensor) -> KeyValue:
        """Keys and values of the reference image's tokens, `n c`."""
        key, value = self.norm_added_k(self.add_k_proj(tokens)).type_as(tokens), self.add_v_proj(tokens)
        return split_heads(key, self.num_heads), split_heads(value, self.num_heads)

    def _attend_to_text(self, query: Tensor, key: Tensor, value: Tensor, weight: Tensor | None) -> Tensor:
        if weight is None:
            return self.attend(query, key, value)
        return scaled_dot_product_attention(query, key, value, attn_mask=weight)
