"""Phase 5: the same networks learn on the states that their own guidance leads to.

In some windows at low noise levels the guided velocity is asked as well, at a random scale: guidance, too, is to lead
to the clip. Without it, lips at audio scale 4 followed their sound less closely than at 2. Guidance can only lead to
the clip where the pass without audio knows as much as the other one: so states at low noise levels are the clip with
noise added, without any errors. States at higher levels are often those of guided steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pipeline.conditioning.prompts import DEFAULT_NEGATIVE_PROMPT
from pipeline.sampling.guidance import Pass

from .. import prompts
from .model import Prompt, TalkingModel
from .noisy_latents import add_noise, random_guidance, random_noise, random_sigma, rollout
from .run import Run, Setup, load_average
from .transformer import AUDIO_DROPOUT, SHIFT, exaggerated_latents, fit, random_prompt, velocity_loss
from .windows import Window

NUM_STEPS, RATE = 1500, 0.004
LENGTHS = (3, 5, 9, 13, 21)  # latent frames
LOW_NOISE = (0.05, 0.8)  # noise levels at which the guided velocity is asked
GUIDED_LOSS_SHARE = 0.4  # of the windows
ROLLOUT_SHARE, ROLLOUT_STEPS = 0.3, 2  # of the other windows at higher noise levels; of the sampler


def train(setup: Setup) -> TalkingModel:
    """Trained transformer and text encoder, from those of phase 4 on; the training goes on where it stopped."""
    torch.manual_seed(setup.seed)
    model = TalkingModel()
    model.load_state_dict(load_average("transformer", setup))
    return fit(Run("guidance", model, NUM_STEPS, RATE, setup), setup, guided_loss, LENGTHS)


def guided_loss(
    model: TalkingModel, batch: list[Window], random: np.random.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Mean loss of windows of one kind, in some of them that of the guided velocity too; and those of mouths alone."""
    prompt, full_dropout = random_prompt(model, batch[0], random)
    negative = model.prompt(DEFAULT_NEGATIVE_PROMPT)
    with torch.no_grad():  # prompts of their own: what layers keep of these has no gradients
        texts = (prompts.prompt(random, *batch[0].kind), DEFAULT_NEGATIVE_PROMPT)
        sampling_prompts = {Pass.COND: model.prompt(texts[0]), Pass.UNCOND: model.prompt(texts[1])}
    losses, mouth_losses = [], {"mouth": [], "guided_mouth": []}
    for window in batch:
        with_guidance = random.random() < GUIDED_LOSS_SHARE
        silent = not with_guidance and (full_dropout or random.random() < AUDIO_DROPOUT)
        sigma = random.uniform(*LOW_NOISE) if with_guidance else random_sigma(SHIFT, random)
        latents = sampled_latents(window, sigma, silent, sampling_prompts, random)
        velocity = prompt.velocity(latents, sigma, window, silent)
        loss, mouth_loss = velocity_loss(velocity, latents, sigma, window)
        mouth_losses["mouth"].append(mouth_loss)
        if with_guidance:
            uncond = negative.velocity(latents, sigma, window, silent=True)
            velocity = random_guidance(random).combine({Pass.COND: velocity, Pass.UNCOND: uncond})
            guided, mouth_loss = velocity_loss(velocity, latents, sigma, window)
            loss = (loss + guided) / 2
            mouth_losses["guided_mouth"].append(mouth_loss)
        losses.append(loss)
    figures = {name: float(np.mean(values)) for name, values in mouth_losses.items() if values}
    return torch.stack(losses).mean(), figures


@torch.no_grad()
def sampled_latents(
    window: Window, sigma: float, silent: bool, prompts_of: Mapping[Pass, Prompt], random: np.random.Generator
) -> Tensor:
    """Noisy latents `16 t h w` of a window: at low noise the clip's, else often those that guided steps lead to."""
    if sigma <= LOW_NOISE[1]:
        return add_noise(window.clean, sigma, random_noise(window.clean, random))
    if random.random() >= ROLLOUT_SHARE:
        return exaggerated_latents(window, sigma, silent, random)

    def predict(latents: Tensor, level: float, pass_: Pass) -> Tensor:
        return prompts_of[pass_].velocity(latents, level, window, silent=not pass_.uses_audio)

    noise = random_noise(window.clean, random)
    return rollout(predict, window.clean, window.num_context, sigma, noise, random, ROLLOUT_STEPS)
