"""TeaCache (arXiv:2411.19108): a plan of the steps to run, from the timesteps alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from ...config import Resolution
from .base import CacheSetup, ResidualCache, relative_change

# From the time projection's relative change to the output's, highest power first (TeaCache's own for Wan I2V).
COEFFICIENTS = {
    Resolution.P480: (2.57151496e5, -3.54229917e4, 1.40286849e3, -1.35890334e1, 1.32517977e-1),
    Resolution.P720: (8.10705460e3, 2.13393892e3, -3.72934672e2, 1.66203073e1, -4.17769401e-2),
}


class TeaCache(ResidualCache):
    """Runs the steps of a plan and repeats the last residual in the others."""

    default_threshold: ClassVar[float] = 0.2

    def __init__(self, plan: Sequence[bool]):
        super().__init__()
        self.plan = plan

    @classmethod
    def from_setup(cls, setup: CacheSetup) -> TeaCache:
        """A fresh cache."""
        coefficients = COEFFICIENTS[setup.resolution]
        threshold, warmup = setup.options.cache_threshold, setup.options.warmup
        return cls(teacache_plan(setup.timesteps, setup.transformer.time_projection, coefficients, threshold, warmup))

    def is_run(self, step: int) -> bool:
        """True where the plan runs this step."""
        return self.plan[step]


def teacache_plan(
    timesteps: Tensor,
    e0_of: Callable[[Tensor], Tensor],
    coefficients: Sequence[float],
    threshold: float,
    warmup: int = 5,
) -> list[bool]:
    """For each step True where its blocks are run (as published for MultiTalk).

    The rescaled changes of the time projection are added up; a step is run when the sum is not below the threshold,
    which sets it back to 0. The projection depends on the timestep alone, so the plan is known before sampling.

    Args:
        timesteps: `steps+1`, of which the last is not evaluated.
        e0_of: the time projection of a timestep.
        coefficients: of the polynomial that rescales a change, highest power first.
        threshold: the lower, the more steps are run; 0.2 runs about half of 40. The published polynomial for 720p is
            negative for the smallest changes, so that even 0 skips steps where there are very many.
        warmup: first steps that are always run.
    """
    plan, total = [True], 0.0
    for step, change in enumerate(time_changes(timesteps, e0_of), start=1):
        total += _polynomial(coefficients, change) if step >= warmup else 0.0
        plan.append(step < warmup or total >= threshold)
        total = 0.0 if plan[-1] else total
    return plan


def time_changes(timesteps: Tensor, e0_of: Callable[[Tensor], Tensor]) -> list[float]:
    """`mean |e0_i - e0_(i-1)| / mean |e0_(i-1)|` of every evaluated step but the first."""
    projections = [e0_of(timestep) for timestep in timesteps[:-1]]
    changes = [relative_change(now, before) for before, now in pairwise(projections)]
    return torch.stack(changes).tolist() if changes else []


def _polynomial(coefficients: Sequence[float], x: float) -> float:
    value = 0.0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value
