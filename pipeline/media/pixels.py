"""Pixels: floats in low..1 to bytes and back; alone in rounding."""

from __future__ import annotations

import torch
from torch import Tensor


def to_uint8(pixels: Tensor, low: float = -1.0) -> Tensor:
    """Pixels in low..1, `low` -1 (the engine's frames) or 0 (ComfyUI's images), as 0..255, rounded to the nearest."""
    return ((pixels.float().clamp(low, 1) - low) * (255 / (1 - low))).round().to(torch.uint8)


def from_uint8(levels: Tensor, low: float = -1.0) -> Tensor:
    """0..255 as float32 pixels in low..1, `low` -1 or 0."""
    return levels.float() / (255 / (1 - low)) + low
