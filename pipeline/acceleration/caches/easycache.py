"""EasyCache (arXiv:2507.02860): reuse while the velocity moves little."""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar

from torch import Tensor

from ...sampling.guidance import Pass
from .base import CacheSetup, ForwardInputs, StepCache, safe_ratio


class EasyCache(StepCache):
    """Reuses the difference of velocity and latents while the velocity moves little.

    From the last two steps that were run, `k = |v - v_before| / |x - x_before|` is the velocity's change for a change
    of the latents. A step is expected to change the velocity by `k |x - x_previous| / |v|`, and is run when the sum is
    not below the threshold. It needs no calibration. The first steps and the last one are always run. It keeps tensors
    of the latents' size only.
    """

    default_threshold: ClassVar[float] = 0.05

    def __init__(self, steps: int, threshold: float, warmup: int):
        super().__init__()
        self.steps, self.threshold, self.warmup = steps, threshold, max(warmup, 2)
        self._differences: dict[Pass, Tensor] = {}  # velocity minus latents
        self._previous_latents: Tensor | None = None  # of the step before
        self._last_run: tuple[Tensor, Tensor] | None = None  # latents and velocity of the last step that was run
        self._rate, self._error = math.inf, 0.0

    @classmethod
    def from_setup(cls, setup: CacheSetup) -> EasyCache:
        """A fresh cache."""
        return cls(setup.steps, setup.options.cache_threshold, setup.options.warmup)

    def velocity(self, forward: ForwardInputs) -> Tensor:
        """The velocity `c t h w`; of a reused step not even the embeddings are computed."""
        is_run = self.decide(forward, partial(self._is_changed, forward.step, forward.latents))
        if not is_run and forward.pass_ in self._differences:
            return forward.latents + self._differences[forward.pass_]
        velocity = forward.compute()
        self._differences[forward.pass_] = velocity - forward.latents
        if forward.pass_ is Pass.COND:
            self._update_rate(forward.latents, velocity)
        return velocity

    def _is_changed(self, step: int, latents: Tensor) -> bool:
        always = step < self.warmup or step == self.steps - 1
        error = math.inf if always else self._error + self._expected_change(latents)
        is_run = not error < self.threshold  # also where it is not a number
        self._error, self._previous_latents = 0.0 if is_run else error, latents
        return is_run

    def _expected_change(self, latents: Tensor) -> float:
        if self._previous_latents is None or self._last_run is None:
            return math.inf
        change = (latents - self._previous_latents).abs().mean()
        return self._rate * safe_ratio(change, self._last_run[1].abs().mean()).item()

    def _update_rate(self, latents: Tensor, velocity: Tensor) -> None:
        if self._last_run is not None:
            last_latents, last_velocity = self._last_run
            rate = safe_ratio((velocity - last_velocity).abs().mean(), (latents - last_latents).abs().mean())
            self._rate = rate.item()
        self._last_run = latents, velocity
