"""Beside the transformer: the VAE's decoder learns on, with the encoder as it is, so that the clips stay valid."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from . import train_vae
from .run import Run
from .train_vae import Phase

PHASES = (Phase(300, 1, 33, 64), Phase(300, 1, 17, 128))


def train(seed: int, device: torch.device) -> AutoencoderKLWan:
    """Trains, or goes on training; returns the averaged VAE."""
    vae = train_vae.train(seed, device)
    vae.requires_grad_(False)
    for part in (vae.decoder, vae.post_quant_conv):
        part.requires_grad_(True)
    run = Run("decoder", vae, sum(phase.steps for phase in PHASES), rate=0.01, averaging=0.98)
    for step in run:
        random = np.random.default_rng((seed, 1, step))
        frames, weights = train_vae.batch(random, train_vae.phase_of(step, PHASES))
        loss, rms = train_vae.loss_of(run.model, frames.to(device), weights.to(device), step)
        run.update(loss, psnr=-20 * np.log10(rms / 2))
    return run.averaged()
