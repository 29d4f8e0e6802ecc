"""Overlapping tiles of a picture, and their linear blend back into one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import ConfigError
from ...shapes import VAE_STRIDE_SPACE


@dataclass(frozen=True)
class Tiling:
    """Side of square tiles and least overlap of neighbours, in pixels; both multiples of 8."""

    size: int = 256
    overlap: int = 64

    def __post_init__(self) -> None:
        whole = self.size % VAE_STRIDE_SPACE == 0 and self.overlap % VAE_STRIDE_SPACE == 0
        if not whole or not 0 < self.overlap <= self.size // 2:
            raise ConfigError(
                f"Tiles need a size and an overlap in multiples of {VAE_STRIDE_SPACE}, the overlap at most half the "
                f"size; got {self.size} and {self.overlap}. 256 and 64 will do."
            )


@dataclass(frozen=True)
class Tile:
    """A tile's rectangle, in latents."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, picture: Tensor, scale: int = 1) -> Tensor:
        """The tile's part of `picture` (`... h w`), a view. `scale`: pixels of the picture to a latent."""
        rows = slice(self.top * scale, (self.top + self.height) * scale)
        columns = slice(self.left * scale, (self.left + self.width) * scale)
        return picture[..., rows, columns]


def split_tiles(height: int, width: int, tiling: Tiling) -> list[Tile]:
    """Tiles that cover `height x width` latents, spread evenly, row by row."""
    side, overlap = tiling.size // VAE_STRIDE_SPACE, tiling.overlap // VAE_STRIDE_SPACE
    rows, columns = _starts(height, side, overlap), _starts(width, side, overlap)
    return [Tile(top, left, min(side, height), min(side, width)) for top in rows for left in columns]


def blend(parts: Sequence[Tensor], tiles: Sequence[Tile], tiling: Tiling, scale: int = 1) -> Tensor:
    """One picture `... h w` of its tiles' `parts`, in float32: where tiles overlap, each fades out towards its edge.

    Args:
        parts: the tiles' pictures.
        tiles: their rectangles.
        tiling: of `split_tiles`.
        scale: pixels of the picture to a latent.
    """
    if len(parts) == 1:
        return parts[0]
    height = max(tile.top + tile.height for tile in tiles) * scale
    width = max(tile.left + tile.width for tile in tiles) * scale
    overlap = tiling.overlap // VAE_STRIDE_SPACE * scale
    picture, weights = torch.zeros(*parts[0].shape[:-2], height, width), torch.zeros(height, width)
    for part, tile in zip(parts, tiles, strict=True):
        weight = torch.outer(_fade(part.shape[-2], overlap), _fade(part.shape[-1], overlap))
        tile.cut(picture, scale).add_(part * weight)
        tile.cut(weights, scale).add_(weight)
    return picture / weights


def _starts(length: int, side: int, overlap: int) -> list[int]:
    if length <= side:
        return [0]
    num_gaps = math.ceil((length - side) / (side - overlap))
    return [index * (length - side) // num_gaps for index in range(num_gaps + 1)]


def _fade(length: int, overlap: int) -> Tensor:
    """Weights that rise from an edge to 1 over `overlap`, and fall again at the other."""
    from_edge = torch.minimum(torch.arange(length), torch.arange(length).flip(0)) + 0.5
    return (from_edge / overlap).clamp(max=1)
