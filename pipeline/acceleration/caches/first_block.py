"""First-block cache (ParaAttention): reuse while the first block's change of the tokens stays the same."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from torch import Tensor

from ...sampling.guidance import Pass
from .base import CacheSetup, ForwardInputs, StepCache, relative_change


class FirstBlockCache(StepCache):
    """Runs the first block, and the others only if its residual has changed.

    The change is `mean |now - before| / mean |before|` against the last step that was run. The last step is always run.
    """

    default_threshold: ClassVar[float] = 0.06

    def __init__(self, steps: int, threshold: float, warmup: int):
        super().__init__()
        self.steps, self.threshold, self.warmup = steps, threshold, max(warmup, 1)
        self._first_residual: Tensor | None = None  # of the first block in the first pass of the last step that was run
        self._rest: dict[Pass, Tensor] = {}  # residuals of the other blocks

    @classmethod
    def from_setup(cls, setup: CacheSetup) -> FirstBlockCache:
        """A fresh cache."""
        return cls(setup.steps, setup.options.cache_threshold, setup.options.warmup)

    @staticmethod
    def num_tensors(num_passes: int) -> int:
        """A residual of the other blocks for each pass, and one of the first block."""
        return num_passes + 1

    def velocity(self, forward: ForwardInputs) -> Tensor:
        """The velocity `c t h w`; embeddings, first block and head are computed in any case."""
        transformer, inputs = forward.transformer, forward.inputs
        tokens, time = transformer.embed(forward.latents, forward.timestep, inputs)
        first = transformer.run_blocks(tokens, time, inputs, slice(0, 1))
        is_run = self.decide(forward, partial(self._is_changed, forward, first - tokens))
        if is_run or forward.pass_ not in self._rest:
            after = transformer.run_blocks(first, time, inputs, slice(1, None))
            self._rest[forward.pass_] = after - first
        else:
            after = first + self._rest[forward.pass_]
        return transformer.head(after, time, inputs)

    def _is_changed(self, forward: ForwardInputs, residual: Tensor) -> bool:
        before, always = self._first_residual, forward.step < self.warmup or forward.step == self.steps - 1
        mean = forward.agreement.mean
        is_run = always or before is None or relative_change(residual, before, mean).item() >= self.threshold
        self._first_residual = residual if is_run else self._first_residual
        return is_run
