"""Between the stages: clips are drawn and encoded for the transformer; it may train on those that are there by now."""

from __future__ import annotations

import torch

from . import train_audio, train_vae
from .dataset import Casting, Encoders, make_grey_tails, make_shards, random_image_encoder

SHORT_FRAMES, LONG_FRAMES = 33, 97
SHORT, LONG, MIXED, BRIEF = 36, 96, 32, 80  # shards
MIXED_CASTING = Casting(two=0.5, plain=0.35, made_up=0.7, coded=True)
BRIEF_CASTING = Casting(two=0.5, plain=0.4, made_up=0.7, coded=True)


def encoders(seed: int, device: torch.device) -> Encoders:
    """The finished parts of the stages before."""
    return Encoders(train_vae.train_eyes(seed, device), train_audio.train(seed, device), random_image_encoder())


def train(seed: int, device: torch.device) -> None:
    """Makes all clips: some short ones first, so that the transformer can begin."""
    parts = encoders(seed, device)
    make_shards(parts, seed, "short", SHORT_FRAMES, range(1))
    make_grey_tails(parts, seed)
    make_shards(parts, seed, "short", SHORT_FRAMES, range(SHORT))
    make_shards(parts, seed, "long", LONG_FRAMES, range(LONG))
    make_shards(parts, seed, "mixed", LONG_FRAMES, range(LONG, LONG + MIXED), MIXED_CASTING)
    make_shards(parts, seed, "brief", SHORT_FRAMES, range(SHORT, SHORT + BRIEF), BRIEF_CASTING)
