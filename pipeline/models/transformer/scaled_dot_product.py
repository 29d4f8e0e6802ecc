"""Scaled dot product attention: the signature of its kernels, and torch's own in chunks where scores are held."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""softmax(q k^T / sqrt(k)) v of query, key and value, all `b heads n k`; views with any strides, k innermost."""

FUSED_DEVICES = ("cpu", "cuda")  # on which torch has kernels that need no memory for their scores
MAX_SCORES = 2**27  # that are held at once: half a gigabyte in float32


def torch_attention(device: torch.device) -> Attend:
    """Torch's own attention; in chunks on devices where it would hold all scores, such as Macs."""
    return scaled_dot_product_attention if device.type in FUSED_DEVICES else _chunked


def attend_in_chunks(attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`attend` for some of the queries at a time: all scores of a long window would take 86 GB, or 172 in float32."""
    rows = max(1, MAX_SCORES // (query.shape[0] * query.shape[1] * key.shape[2]))
    return torch.cat([attend(chunk, key, value) for chunk in query.split(rows, dim=2)], dim=2)


def _chunked(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return attend_in_chunks(scaled_dot_product_attention, query, key, value)
