"""Phase 4: the transformer, its audio adapter and the text encoder learn to continue a portrait as speech.

The objective is that of the published model, flow matching: of `x = (1 - sigma) clean + sigma noise` the velocity
`(x - clean) / sigma` is asked, which leads back to the clean latents. All windows of a step share one prompt, whose
tokens are then embedded once. Windows grow longer over the phase.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.conditioning.prompts import DEFAULT_NEGATIVE_PROMPT

from .. import prompts
from .clips import EYE_WEIGHT
from .model import Prompt, TalkingModel
from .noisy_latents import exaggerate_motion, random_noise, random_sigma
from .run import Run, Setup, autocast
from .windows import Window, Windows

NUM_STEPS, RATE = 12000, 0.01
BATCH = 6  # windows
LENGTHS = (3, 5, 9, 13, 21, 25)  # latent frames; all of them from a third of the phase on
SHIFT = 5.0  # of the noise levels
TEXT_DROPOUT, AUDIO_DROPOUT, FULL_DROPOUT = 0.2, 0.05, 0.2  # shares of steps, of windows, of steps
EXAGGERATION, JITTER = 1.5, 1.5  # of motions, at most: the same in all frames of a window, and of each frame by itself

BatchLoss = Callable[[TalkingModel, list[Window], np.random.Generator], tuple[Tensor, dict[str, float]]]
"""Loss of some windows of one kind, and figures for the log."""


def train(setup: Setup) -> TalkingModel:
    """Trained transformer and text encoder; the training goes on where it stopped."""
    torch.manual_seed(setup.seed)
    return fit(Run("transformer", TalkingModel(), NUM_STEPS, RATE, setup), setup, flow_loss, LENGTHS)


def fit(run: Run[TalkingModel], setup: Setup, batch_loss: BatchLoss, lengths: Sequence[int]) -> TalkingModel:
    """Model after all steps of a run down `batch_loss`."""
    if run.finished:
        return run.result()
    windows = Windows(setup)
    for step in run:
        random = np.random.default_rng((setup.seed, step))
        longest = min(len(lengths), 2 + int(2 * len(lengths) * run.progress))
        batch = windows.batch(random, BATCH, int(random.choice(lengths[:longest])))
        with autocast(setup.device):
            loss, figures = batch_loss(run.model, batch, random)
        run.update(loss, **figures)
    return run.result()


def flow_loss(model: TalkingModel, batch: list[Window], random: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
    """Mean flow matching loss of windows of one kind, and that of their mouths alone."""
    prompt, full_dropout = random_prompt(model, batch[0], random)
    losses, mouth_losses = [], []
    for window in batch:
        silent = full_dropout or random.random() < AUDIO_DROPOUT
        sigma = random_sigma(SHIFT, random)
        latents = exaggerated_latents(window, sigma, silent, random)
        loss, mouth_loss = velocity_loss(prompt.velocity(latents, sigma, window, silent), latents, sigma, window)
        losses.append(loss)
        mouth_losses.append(mouth_loss)
    return torch.stack(losses).mean(), {"mouth": float(np.mean(mouth_losses))}


def random_prompt(model: TalkingModel, window: Window, random: np.random.Generator) -> tuple[Prompt, bool]:
    """Prompt that fits a window, or the negative one where text is dropped out; and if all audio is, too."""
    draw = random.random()
    full_dropout = draw < FULL_DROPOUT
    text_dropout = draw < FULL_DROPOUT + TEXT_DROPOUT
    text = DEFAULT_NEGATIVE_PROMPT if text_dropout else prompts.prompt(random, *window.kind)
    return model.prompt(text), full_dropout


def exaggerated_latents(window: Window, sigma: float, silent: bool, random: np.random.Generator) -> Tensor:
    """Noisy latents `16 t h w` of larger or smaller motions than the clip's; without audio, of the clip's."""
    shares = np.zeros(window.size.t) if silent else motion_shares(window.size.t, random)
    return exaggerate_motion(window.clean, window.num_context, sigma, random_noise(window.clean, random), shares)


def motion_shares(length: int, random: np.random.Generator) -> np.ndarray:
    """Share of its own motion, `length`, that each latent frame gets on top."""
    return random.uniform(-EXAGGERATION, EXAGGERATION) + random.uniform(-JITTER, JITTER, length)


def velocity_loss(velocity: Tensor, latents: Tensor, sigma: float, window: Window) -> tuple[Tensor, float]:
    """Squared error of a velocity of latents, heavier at eyes and most at mouths; with it that of mouths alone."""
    target, weights = (tensor.to(velocity.device) for tensor in ((latents - window.clean) / sigma, window.weights))
    error = (velocity - target).square().mean(dim=0)  # t h w
    mouths = weights > EYE_WEIGHT
    mouth_error = (error * mouths).sum() / (mouths.sum() * len(error))
    return (error * weights).sum() / (weights.sum() * len(error)), mouth_error.item()
