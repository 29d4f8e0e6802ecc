"""Noisy latents as sampling meets them, which are not always clips with noise added.

Guidance exaggerates the motion that a step sees, and a model that has only ever seen true motions trusts its own
latents more than the sound.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pipeline.config import GuidanceConfig
from pipeline.sampling.guidance import Guidance, Pass

MAX_SCALE = 4.0  # of guidance: that of the published program's audio


def random_sigma(shift: float, random: np.random.Generator) -> float:
    """Noise level, 0..1: uniform, then shifted as the sampler's is."""
    uniform = random.uniform(0.001, 1)
    return shift * uniform / (1 + (shift - 1) * uniform)


def random_noise(clean: Tensor, random: np.random.Generator) -> Tensor:
    """Gaussian noise of the shape of `clean`."""
    return torch.from_numpy(random.standard_normal(clean.shape, dtype=np.float32))


def add_noise(clean: Tensor, sigma: float, noise: Tensor) -> Tensor:
    """Latents at the noise level `sigma`, 0..1."""
    return (1 - sigma) * clean + sigma * noise


def random_guidance(random: np.random.Generator) -> Guidance:
    """Guidance to text and audio alike, at a scale from 1 to `MAX_SCALE`; of the passes `COND` and `UNCOND`."""
    scale = random.uniform(1, MAX_SCALE)
    return Guidance(GuidanceConfig(text_scale=scale, audio_scale=scale))


def exaggerate_motion(clean: Tensor, num_context: int, sigma: float, noise: Tensor, shares: np.ndarray) -> Tensor:
    """Noisy latents `16 t h w` of larger or smaller motions (after Ning et al., 2023, Input Perturbation).

    Args:
        clean: `16 t h w`.
        num_context: latent frames that keep their motion.
        sigma: noise level; motions change by less at lower ones.
        noise: like `clean`.
        shares: `t`, of its own motion that each latent frame gets on top.
    """
    motion = clean[:, num_context:] - clean[:, num_context:].mean(dim=1, keepdim=True)
    latents = clean.clone()
    latents[:, num_context:] += sigma * torch.from_numpy(shares).float()[num_context:, None, None] * motion
    return add_noise(latents, sigma, noise)


def rollout(
    predict: Callable[[Tensor, float, Pass], Tensor], clean: Tensor, num_context: int, sigma: float, noise: Tensor,
    random: np.random.Generator, num_steps: int = 1,
) -> Tensor:  # fmt: skip
    """Noisy latents that guided steps of the model lead to (after DAgger, Ross et al., 2011).

    The first step starts from the clip with noise added, and each one halves the noise level at most. The context of a
    continued window is put back into place, as the sampler does.

    Args:
        predict: velocity of latents at a noise level in one of the passes.
        clean: `16 t h w`.
        num_context: latent frames of the context.
        sigma: noise level of the result.
        noise: like `clean`.
        random: draws the guidance and the start.
        num_steps: of the sampler.
    """
    guidance = random_guidance(random)
    levels = np.geomspace(random.uniform(sigma, min(1, 2**num_steps * sigma)), sigma, num_steps + 1)
    latents = add_noise(clean, levels[0], noise)
    for level, next_level in pairwise(levels.tolist()):
        velocity = guidance.combine({pass_: predict(latents, level, pass_) for pass_ in guidance.passes})
        latents = latents - (level - next_level) * velocity.to(latents)
        if num_context > 1:
            latents[:, :num_context] = add_noise(clean, next_level, noise)[:, :num_context]
    return latents
