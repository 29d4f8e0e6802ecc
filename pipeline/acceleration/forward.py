"""What a step cache is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..models.transformer.model import MultiTalkTransformer
from ..models.transformer.prepared import PassInputs
from ..sampling.guidance import Pass


@dataclass(frozen=True)
class Forward:
    """One forward of the transformer that is asked for: latents `c t h w` at a timestep, in one of the passes."""

    transformer: MultiTalkTransformer
    latents: Tensor
    timestep: Tensor
    step: int
    heard: PassInputs
    pass_: Pass


class StepCache(Protocol):
    """Answers forwards, some of them from memory."""

    def velocity(self, asked: Forward) -> Tensor:
        """The velocity `c t h w` in float32, computed or reused."""


def relative_change(now: Tensor, before: Tensor) -> Tensor:
    """`mean |now - before| / mean |before|`, 0-dim."""
    return safe_ratio((now - before).abs().mean(), before.abs().mean())


def safe_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """A quotient that is large, rather than not a number, where the denominator is 0."""
    return numerator / denominator.clamp(min=torch.finfo(denominator.dtype).tiny)
