"""Noisy latents that training sees: those that sampling meets, which are not always clips with noise added.

Guidance overdoes what a step knows of a motion, and a model that has only ever seen true motions believes its own
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

LARGEST_SCALE = 4.0  # of guidance: that of the published program's audio


def noise_level(shift: float, random: np.random.Generator) -> float:
    """Sigma, 0..1: uniform, then shifted as the sampler's is."""
    uniform = random.uniform(0.001, 1)
    return shift * uniform / (1 + (shift - 1) * uniform)


def random_guidance(random: np.random.Generator) -> Guidance:
    """Towards text and audio alike, at a scale from 1 to `LARGEST_SCALE`; of the passes `COND` and `UNCOND`."""
    scale = random.uniform(1, LARGEST_SCALE)
    return Guidance(GuidanceConfig(text_scale=scale, audio_scale=scale))


def overdone(clean: Tensor, known: int, sigma: float, noise: Tensor, shares: np.ndarray) -> Tensor:
    """`16 t h w` in which motions are larger or smaller than they are (after Ning et al., 2023, Input Perturbation).

    Args:
        clean: `16 t h w`.
        known: latent frames that stay as they are.
        sigma: less is overdone where less noise is left.
        noise: like `clean`.
        shares: of its own motion that each latent frame seems to have more than it has.
    """
    seen = clean.clone()
    motion = clean[:, known:] - clean[:, known:].mean(dim=1, keepdim=True)
    seen[:, known:] += sigma * torch.from_numpy(shares).float()[known:, None, None] * motion
    return (1 - sigma) * seen + sigma * noise


def guided(
    predict: Callable[[Tensor, float, Pass], Tensor], clean: Tensor, known: int, sigma: float, noise: Tensor,
    random: np.random.Generator, steps: int = 1,
) -> Tensor:  # fmt: skip
    """`16 t h w` where the model's own guided steps lead from a higher noise level (after DAgger, Ross et al., 2011).

    The first step starts from the clip with noise added, and each one halves the noise level at most. What a continued
    window knows is put back into place, as the sampler does.

    Args:
        predict: the velocity of latents at a noise level in one of the passes.
        clean: `16 t h w`.
        known: latent frames that the window knows.
        sigma: the noise level that is arrived at.
        noise: like `clean`.
        random: draws the guidance and the start.
        steps: how many.
    """
    guidance = random_guidance(random)
    levels = np.geomspace(random.uniform(sigma, min(1, 2**steps * sigma)), sigma, steps + 1)
    latents = (1 - levels[0]) * clean + levels[0] * noise
    for level, following in pairwise(levels.tolist()):
        velocity = guidance.combine({pass_: predict(latents, level, pass_) for pass_ in guidance.passes})
        latents = latents - (level - following) * velocity.to(latents)
        if known > 1:
            latents[:, :known] = ((1 - following) * clean + following * noise)[:, :known]
    return latents
