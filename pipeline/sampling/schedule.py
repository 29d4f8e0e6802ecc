"""The timesteps of a run."""

from __future__ import annotations

import torch
from torch import Tensor

NUM_TRAIN_TIMESTEPS = 1000


def timesteps(steps: int, shift: float, skip_tail: bool = False) -> Tensor:
    """The timesteps of `steps` steps, float32 `steps+1` from 1000 down to 0.

    `t = 1000 shift s / (1 + (shift - 1) s)`, where `s` falls evenly from 1. The published schedule lets it fall to
    1/1000 and then appends 0, so its last evaluation is next to zero noise. With 40 steps that costs little; with 4 it
    wastes one of them, and few-step LoRAs and FlashTalk were trained without that tail.

    Args:
        steps: velocity evaluations, at least 1.
        shift: above 1 spends more steps at high noise; 1 leaves them even.
        skip_tail: lets `s` fall evenly to 0 instead.
    """
    if skip_tail:
        s = torch.linspace(1, 0, steps + 1)
    else:
        s = torch.cat([torch.linspace(NUM_TRAIN_TIMESTEPS, 1, steps) / NUM_TRAIN_TIMESTEPS, torch.zeros(1)])
    return NUM_TRAIN_TIMESTEPS * shift * s / (1 + (shift - 1) * s)
