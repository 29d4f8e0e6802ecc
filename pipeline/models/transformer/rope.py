"""Rotary position embeddings (RoFormer, arXiv:2104.09864): neighbouring channels of a head are rotated as one pair."""

from __future__ import annotations

import torch
from torch import Tensor

THETA = 10_000.0
CHUNK_TOKENS = 8192  # at a time: in float32, twice, they are four times as large as in bfloat16


def rotation(positions: Tensor, width: int) -> Tensor:
    """`(cos, sin)` of the angles `p * theta^(-2i/width)`, float32, `... width/2 2`.

    Args:
        positions: `...`, any real numbers; angles are computed in their precision.
        width: channels to be rotated, two for each angle.
    """
    exponents = torch.arange(0, width, 2, dtype=positions.dtype, device=positions.device) / width
    angles = positions[..., None] * THETA**-exponents
    return torch.stack((angles.cos(), angles.sin()), dim=-1).float()


def grid_rotation(t: int, rows: int, columns: int, head_dim: int) -> Tensor:
    """The rotation of every token of a video by its position, `(t rows columns) 1 head_dim/2 2`, for all heads alike.

    Of `head_dim` channels the last third rotates with the column, the third before with the row, and what the rounding
    leaves (44, 42 and 42 of 128) with the latent frame. The angles are float64: they reach far over one turn.
    """
    space = 2 * (head_dim // 6)
    widths = {"t": head_dim - 2 * space, "rows": space, "columns": space}
    t_axis, row_axis, column_axis = (
        rotation(torch.arange(length, dtype=torch.float64), width)
        for length, width in zip((t, rows, columns), widths.values(), strict=True)
    )
    axes = (t_axis[:, None, None], row_axis[None, :, None], column_axis[None, None, :])
    grids = [axis.expand(t, rows, columns, -1, 2) for axis in axes]
    return torch.cat(grids, dim=-2).flatten(0, 2).unsqueeze(1)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """`x` (`n ... heads k`), its pairs of channels rotated by `rotation` (`n ... 1 k/2 2`) in float32, as x's dtype."""
    if len(x) <= CHUNK_TOKENS or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return _rotate(x, rotation).type_as(x)
    rotated = torch.empty_like(x)
    for output, *chunk in zip(*(tensor.split(CHUNK_TOKENS) for tensor in (rotated, x, rotation)), strict=True):
        output.copy_(_rotate(*chunk))
    return rotated


def _rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """The same in float32."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # inductor fuses this form and has no complex numbers; eager is 7-16 times slower
        (a, b), (cos, sin) = pairs.unbind(-1), rotation.unbind(-1)
        pairs = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1)
    else:
        pairs = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotation))
    return pairs.flatten(-2)
