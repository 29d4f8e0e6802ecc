"""Taylor forecast (TaylorSeer, arXiv:2503.06923): residuals extrapolated from the steps of an even plan."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ...sampling.guidance import Pass
from .base import CacheSetup, ForwardInputs, ResidualCache

ORDER = 1  # of the series: a value and its slope


class TaylorCache(ResidualCache):
    """Runs the steps of a plan; in the others the residual goes on along its Taylor series."""

    def __init__(self, plan: Sequence[bool]):
        super().__init__()
        self.plan = plan
        self._forecasts: dict[Pass, Forecast] = {}

    @classmethod
    def from_setup(cls, setup: CacheSetup) -> TaylorCache:
        """A fresh cache."""
        return cls(interval_plan(setup.steps, setup.options.interval, setup.options.warmup))

    @staticmethod
    def num_tensors(num_passes: int) -> int:
        """A residual and its derivatives for each pass."""
        return (1 + ORDER) * num_passes

    def is_run(self, step: int) -> bool:
        """True where the plan runs this step."""
        return self.plan[step]

    def keep(self, forward: ForwardInputs, residual: Tensor) -> None:
        """Keeps the residual and its derivatives."""
        super().keep(forward, residual)
        self._forecasts.setdefault(forward.pass_, Forecast(ORDER)).update(forward.step, residual)

    def residual(self, forward: ForwardInputs) -> Tensor:
        """The residual expected at this step."""
        return self._forecasts[forward.pass_].at(forward.step)


class Forecast:
    """The expected value of a quantity at a later step, from its values at earlier ones: a Taylor series of `order`."""

    def __init__(self, order: int):
        self.order = order
        self._step = 0
        self._derivatives: list[Tensor] = []

    def update(self, step: int, value: Tensor) -> None:
        """Takes the value at `step`; its derivatives are differences to the last ones."""
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
