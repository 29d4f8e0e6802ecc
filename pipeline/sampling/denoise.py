"""Denoising of one window: from noise to clean latents along the guided velocity."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from .agreement import ONE_PROCESS, Agreement
from .guidance import Guidance, Pass
from .samplers import Sampler
from .schedule import NUM_TRAIN_TIMESTEPS

Predict = Callable[[Tensor, Tensor, int, Pass], Tensor]


class Anchor(Protocol):
    """Constraint that holds a window's first latent frames to its motion latents."""

    def hold(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """`latents` (`c t h w`) at noise level `sigma` (1..0) with the motion latents in place."""
        ...


class NoAnchor:
    """No constraint, as in MultiTalk's first window, where the image acts through the condition alone."""

    def hold(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """`latents` as they are."""
        return latents


class NoisedMotion:
    """Motion latents at the noise level of the other frames, with fresh noise each time: MultiTalk's later windows.

    Args:
        motion_latents: `c t h w`, clean.
        noise: yields noise of their shape, once before the first step and once after every step.
    """

    def __init__(self, motion_latents: Tensor, noise: Iterator[Tensor]):
        self.motion_latents, self.noise = motion_latents, noise

    def hold(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """`latents` with `(1 - sigma) motion + sigma noise` over the first frames."""
        noise = next(self.noise).to(latents)
        return _replace_start(latents, (1 - sigma) * self.motion_latents.to(latents) + sigma * noise)


class CleanMotion:
    """Motion latents (`c t h w`) that stay clean at every noise level: all windows of InfiniteTalk and FlashTalk."""

    def __init__(self, motion_latents: Tensor):
        self.motion_latents = motion_latents

    def hold(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """`latents` with the clean motion latents over the first frames."""
        return _replace_start(latents, self.motion_latents.to(latents))


def denoise(
    predict: Predict,
    noise: Tensor,
    timesteps: Tensor,
    guidance: Guidance,
    anchor: Anchor,
    sampler: Sampler,
    on_step: Callable[[int, Tensor], None],
    agreement: Agreement = ONE_PROCESS,
) -> Tensor:
    """The clean latents of a window, float32 `c t h w` on the device of `noise`.

    Args:
        predict: from latents, timestep (0-dim, 1000..0), step number and pass to the velocity, noise minus clean.
        noise: `c t h w`, standard normal.
        timesteps: `steps+1` falling values of 1000..0, on the CPU.
        guidance: this window's own; it has state.
        anchor: this window's own; sets the motion latents before the first step and after every step.
        sampler: this window's own.
        on_step: called after each step with its number, from 0, and the present estimate of the clean latents.
        agreement: of the ranks that sample the window together.
    """
    sigmas = timesteps / NUM_TRAIN_TIMESTEPS
    latents = anchor.hold(noise.float(), sigmas[0])
    for step, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        passes, velocities = guidance.passes_at(step), {}
        for pass_ in agreement.own_passes(passes):
            velocities[pass_] = predict(latents, timesteps[step], step, pass_).float()
        velocity = guidance.combine(agreement.all_velocities(passes, velocities))
        on_step(step, latents - sigma * velocity)
        latents = agreement.latents(anchor.hold(sampler.step(latents, velocity, sigma, next_sigma), next_sigma))
    return latents


def _replace_start(latents: Tensor, motion: Tensor) -> Tensor:
    """`latents` with `motion` in the place of its first frames."""
    return torch.cat([motion, latents[:, motion.shape[1] :]], dim=1)
