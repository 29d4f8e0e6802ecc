"""Caches that reuse what all blocks together added to the tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..sampling.guidance import Pass
from .forward import Forward

LONGEST_SKIP = 3  # steps in a row that MagCache leaves out at most


class ResidualCache:
    """Reuses what all blocks together added to the tokens. Subclasses tell which steps are run.

    Args:
        order: 0 repeats the last residual; above, a Taylor forecast from the last ones (TaylorSeer, arXiv:2503.06923).
    """

    def __init__(self, order: int = 0):
        self._order = order
        self._forecasts: dict[Pass, Forecast] = {}

    def runs(self, step: int) -> bool:
        """Whether the blocks of this step are run."""
        raise NotImplementedError

    def velocity(self, asked: Forward) -> Tensor:
        """The velocity `c t h w`; embeddings and head are computed in any case."""
        transformer, heard = asked.transformer, asked.heard
        tokens, time = transformer.embed(asked.latents, asked.timestep, heard)
        forecast = self._forecasts.setdefault(asked.pass_, Forecast(self._order))
        if self.runs(asked.step) or forecast.is_empty:
            after = transformer.run_blocks(tokens, time, heard)
            velocity = transformer.head(after, time, heard)
            self.learn(asked, after - tokens)
            return velocity
        return transformer.head(tokens + forecast.at(asked.step), time, heard)

    def learn(self, asked: Forward, residual: Tensor) -> None:
        """Keeps what the blocks have just added."""
        self._forecasts[asked.pass_].learn(asked.step, residual)


class PlannedCache(ResidualCache):
    """Runs the steps of a plan: TeaCache's, or an even one for a forecast."""

    def __init__(self, plan: Sequence[bool], order: int = 0):
        super().__init__(order)
        self.plan = plan

    def runs(self, step: int) -> bool:
        """Whether the plan runs this step."""
        return self.plan[step]


class MagCache(ResidualCache):
    """Leaves out steps while the residual's magnitude is not expected to have drifted (MagCache, arXiv:2506.09045).

    With `g_t = |r_t| / |r_(t-1)|` the error of keeping a residual is `|1 - g_t|`, then `|1 - g_t g_(t+1)|` and so on,
    summed up. The ratios are expected to go on as they went between the last two steps that were run. The last step is
    always run, because there magnitudes bend.
    """

    def __init__(self, steps: int, threshold: float, warmup: int):
        super().__init__()
        self.steps, self.threshold, self.warmup = steps, threshold, max(warmup, 2)
        self._plan: list[bool] = []
        self._magnitudes: dict[int, float] = {}  # by step, of the first pass
        self._drift, self._error, self._skipped = 1.0, 0.0, 0

    def runs(self, step: int) -> bool:
        """Whether the expected error is too large, or the step is one that is always run."""
        while len(self._plan) <= step:
            self._plan.append(self._decide(len(self._plan)))
        return self._plan[step]

    def learn(self, asked: Forward, residual: Tensor) -> None:
        """Keeps the residual and its magnitude."""
        super().learn(asked, residual)
        if asked.pass_ is Pass.COND:
            self._magnitudes[asked.step] = torch.linalg.vector_norm(residual, dim=-1, dtype=torch.float32).mean().item()

    def _decide(self, step: int) -> bool:
        if step < self.warmup or step == self.steps - 1:
            return True
        self._drift *= self._trend()
        self._error += abs(1 - self._drift)
        self._skipped += 1
        run = self._error >= self.threshold or self._skipped > LONGEST_SKIP
        if run:
            self._drift, self._error, self._skipped = 1.0, 0.0, 0
        return run

    def _trend(self) -> float:
        (before, old), (last, new) = sorted(self._magnitudes.items())[-2:]
        return (new / old) ** (1 / (last - before)) if old else math.inf


class Forecast:
    """What a quantity will be at a later step, from its values at earlier ones: a Taylor series of `order`."""

    def __init__(self, order: int):
        self.order = order
        self._step = 0
        self._derivatives: list[Tensor] = []

    @property
    def is_empty(self) -> bool:
        """Whether nothing was learned yet."""
        return not self._derivatives

    def learn(self, step: int, value: Tensor) -> None:
        """Takes the value at `step`; derivatives are differences to what the last one had."""
        distance, derivatives = step - self._step, [value]
        for before in self._derivatives[: self.order]:
            derivatives.append((derivatives[-1] - before) / distance)
        self._step, self._derivatives = step, derivatives

    def at(self, step: int) -> Tensor:
        """The value expected at `step`."""
        value, distance = self._derivatives[0], step - self._step
        for power, derivative in enumerate(self._derivatives[1:], start=1):
            value = value + derivative * (distance**power / math.factorial(power))
        return value


def interval_plan(steps: int, interval: int, warmup: int) -> list[bool]:
    """Runs the first `warmup` steps, then every `interval`-th, and the last."""
    return [step < warmup or (step - warmup + 1) % interval == 0 or step == steps - 1 for step in range(steps)]
