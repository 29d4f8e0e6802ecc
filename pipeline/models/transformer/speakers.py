"""MultiTalk's label rotary embedding (L-RoPE): positions that bind video tokens to voices, read off the self-attention.

Each person owns a range of positions, the background one position between them. A token's audio query is rotated by the
token's position, a person's audio keys by the middle of the person's range: a token attends to its own person most.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .scaled_dot_product import torch_attention
from .token_shares import ON_ONE_DEVICE, TokenShares

SPACING, RANGE = 20.0, 4.0  # persons' ranges are 0..4, 20..24, 40..44 and so on; trained with the first two
BACKGROUND = (SPACING + RANGE) / 2  # 10 away from the first two voices, further from all others


def range_starts(num_speakers: int, device: torch.device | None = None) -> Tensor:
    """The first position of each person's range, `p`."""
    return SPACING * torch.arange(num_speakers, device=device)


def voice_positions(num_speakers: int, device: torch.device | None = None) -> Tensor:
    """The position of each person's voice, `p`: the middle of the person's range."""
    return range_starts(num_speakers, device) + RANGE / 2


def reference_attention(query: Tensor, key: Tensor, token_masks: Tensor) -> Tensor:
    """The reference map: each token's attention to each class of the first latent frame, `classes n` in float32.

    `map_c[n] = mean_heads(sum_s A[n, s] mask_c[s]) / sum_s mask_c[s]` with `A = softmax_s(q k^T / sqrt(k))` over the
    first latent frame's s tokens. The masks are the attention's values, so that `A` never exists as a whole.

    Args:
        query: `1 heads n k`, of the self-attention, after norm and rope.
        key: `1 heads n k`, the same.
        token_masks: `classes s`, 0 or 1; a class without a token gets a map of zeros.
    """
    num_classes, num_first = token_masks.shape
    values = pad(token_masks.T.to(query.dtype), (0, key.shape[-1] - num_classes))  # fused kernels want v as wide as k
    attend = torch_attention(query.device)
    sums = attend(query, key[:, :, :num_first], values.expand(1, key.shape[1], -1, -1))
    return sums[0, :, :, :num_classes].float().mean(dim=0).T / token_masks.sum(dim=1, keepdim=True).clamp(min=1)


def speaker_positions(reference_map: Tensor, shares: TokenShares = ON_ONE_DEVICE) -> Tensor:
    """The position of each video token, `n`, from the reference map (`classes n`, persons first, then background).

    The class with the highest attention wins; a person's tokens are spread over the person's range by
    `(map - min map) / (max map - min map)`, minimum and maximum taken over all tokens of the window.
    """
    low, high = shares.extremes(reference_map)
    relative = (reference_map - low) / (high - low + 1e-8)
    persons = range_starts(len(reference_map) - 1, reference_map.device)[:, None] + RANGE * relative[:-1]
    background = torch.full_like(reference_map[:1], BACKGROUND)
    winner = reference_map.argmax(dim=0, keepdim=True)
    return torch.cat((persons, background)).gather(0, winner)[0]
