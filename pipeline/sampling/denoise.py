"""One window from noise to clean latents, by Euler steps along the guided velocity."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from .guidance import Guidance, Pass
from .schedule import NUM_TRAIN_TIMESTEPS

Predict = Callable[[Tensor, Tensor, int, Pass], Tensor]


class Anchor(Protocol):
    """Holds a window's first latent frames to the frames that are known."""

    def hold(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """`latents` (`c t h w`) at noise level `sigma` (1..0) with the known frames in place."""


class NoAnchor:
    """MultiTalk's first window: the image acts through the condition alone."""

    def hold(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """`latents` as they are."""
        return latents


class NoisedMotion:
    """MultiTalk's later windows: the motion latents stand at the noise level of the others, with fresh noise each time.

    Args:
        motion_latents: `c t h w`, clean.
        noise: yields noise of their shape, once before the first step and once after every step.
    """

    def __init__(self, motion_latents: Tensor, noise: Iterator[Tensor]):
        self.motion_latents, self.noise = motion_latents, noise

    def hold(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """`latents` with `(1 - sigma) motion + sigma noise` over the first frames."""
        noise = next(self.noise).to(latents)
        return _overwrite(latents, (1 - sigma) * self.motion_latents.to(latents) + sigma * noise)


class CleanMotion:
    """InfiniteTalk: the motion latents (`c t h w`) stand clean at every noise level, in the first window too."""

    def __init__(self, motion_latents: Tensor):
        self.motion_latents = motion_latents

    def hold(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """`latents` with the clean motion latents over the first frames."""
        return _overwrite(latents, self.motion_latents.to(latents))


def denoise(
    predict: Predict,
    noise: Tensor,
    timesteps: Tensor,
    guidance: Guidance,
    anchor: Anchor,
    on_step: Callable[[int, Tensor], None],
) -> Tensor:
    """The clean latents of a window, float32 `c t h w` on the device of `noise`.

    Args:
        predict: from latents, timestep (0-dim, 1000..0), step number and pass to the velocity, noise minus clean.
        noise: `c t h w`, standard normal.
        timesteps: `steps+1` falling values of 1000..0, on the CPU.
        guidance: this window's own; it remembers what came before.
        anchor: where the known frames enter.
        on_step: told after each step its number and the present guess of the clean latents.
    """
    sigmas = timesteps / NUM_TRAIN_TIMESTEPS
    latents = anchor.hold(noise.float(), sigmas[0])
    for step, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        velocities = {}
        for pass_ in guidance.passes_at(step):
            velocities[pass_] = predict(latents, timesteps[step], step, pass_).float()
        velocity = guidance.combine(velocities)
        on_step(step, latents - sigma * velocity)
        latents = anchor.hold(latents - (sigma - next_sigma) * velocity, next_sigma)
    return latents


def _overwrite(latents: Tensor, known: Tensor) -> Tensor:
    return torch.cat([known, latents[:, known.shape[1] :]], dim=1)
