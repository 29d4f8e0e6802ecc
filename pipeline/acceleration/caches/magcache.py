"""MagCache (arXiv:2506.09045): reuse while the residual's magnitude is not expected to drift."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from ...sampling.guidance import Pass
from .base import CacheSetup, ForwardInputs, ResidualCache

LONGEST_SKIP = 3  # steps in a row that are left out at most


class MagCache(ResidualCache):
    """Leaves out steps while the residual's magnitude is not expected to have drifted.

    With `g_t = |r_t| / |r_(t-1)|` the error of keeping a residual is `|1 - g_t|`, then `|1 - g_t g_(t+1)|` and so on,
    summed up. The ratios are expected to go on as they went between the last two steps that were run. The last step is
    always run, because there magnitudes bend.
    """

    default_threshold: ClassVar[float] = 0.12

    def __init__(self, steps: int, threshold: float, warmup: int):
        super().__init__()
        self.steps, self.threshold, self.warmup = steps, threshold, max(warmup, 2)
        self._plan: list[bool] = []
        self._magnitudes: dict[int, float] = {}  # by step, of the first pass
        self._drift, self._error, self._num_skipped = 1.0, 0.0, 0

    @classmethod
    def from_setup(cls, setup: CacheSetup) -> MagCache:
        """A fresh cache."""
        return cls(setup.steps, setup.options.cache_threshold, setup.options.warmup)

    def is_run(self, step: int) -> bool:
        """True where the expected error is too large, or the step is one that is always run."""
        while len(self._plan) <= step:
            self._plan.append(self._decide(len(self._plan)))
        return self._plan[step]

    def keep(self, forward: ForwardInputs, residual: Tensor) -> None:
        """Keeps the residual and its magnitude."""
        super().keep(forward, residual)
        if forward.pass_ is Pass.COND:
            norms = torch.linalg.vector_norm(residual, dim=-1, dtype=torch.float32)
            self._magnitudes[forward.step] = forward.agreement.mean(norms).item()

    def _decide(self, step: int) -> bool:
        if step < self.warmup or step == self.steps - 1:
            return True
        self._drift *= self._trend()
        self._error += abs(1 - self._drift)
        self._num_skipped += 1
        is_run = self._error >= self.threshold or self._num_skipped > LONGEST_SKIP
        if is_run:
            self._drift, self._error, self._num_skipped = 1.0, 0.0, 0
        return is_run

    def _trend(self) -> float:
        (before, old), (last, new) = sorted(self._magnitudes.items())[-2:]
        return (new / old) ** (1 / (last - before)) if old else math.inf
