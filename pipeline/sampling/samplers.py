"""Samplers: the step from one noise level to the next along the velocity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor

from ..config import SamplerKind
from .noise import Noise


class Sampler(Protocol):
    """The rule of one step."""

    def step(self, latents: Tensor, velocity: Tensor, sigma: Tensor, next_sigma: Tensor) -> Tensor:
        """Latents at `next_sigma`, from those at `sigma` (`c t h w`, 1..0) and their velocity, noise minus clean."""
        ...


class EulerSampler:
    """Euler steps of the probability flow: `x' = x - (sigma - sigma') v`; no noise is added."""

    def step(self, latents: Tensor, velocity: Tensor, sigma: Tensor, next_sigma: Tensor) -> Tensor:
        """The next latents."""
        return latents - (sigma - next_sigma) * velocity


class RenoiseSampler:
    """Steps of a model distilled to few of them, FlashTalk: the clean estimate, noised anew to the next level.

    `x0 = x - sigma v`, `x' = (1 - sigma') x0 + sigma' e`.

    Args:
        noise: yields `e`, standard normal of the whole latents' shape, once a step; the last one is multiplied by 0.
    """

    def __init__(self, noise: Iterator[Tensor]):
        self.noise = noise

    def step(self, latents: Tensor, velocity: Tensor, sigma: Tensor, next_sigma: Tensor) -> Tensor:
        """The next latents."""
        clean = latents - sigma * velocity
        return (1 - next_sigma) * clean + next_sigma * next(self.noise).to(clean)


def make_sampler(kind: SamplerKind, noise: Noise, window: int, shape: Sequence[int]) -> Sampler:
    """The sampler of one attempt at a window with latents of `shape`; its noise begins anew with each."""
    if kind is SamplerKind.RENOISE:
        return RenoiseSampler(noise.renoise(window, shape))
    return EulerSampler()
