"""Caches that watch something cheap and run a step when it has changed too much."""

from __future__ import annotations

import math

from torch import Tensor

from ..sampling.guidance import Pass
from .forward import Forward, relative_change, safe_ratio


class EasyCache:
    """Reuses the difference of velocity and latents while the velocity moves little (EasyCache, arXiv:2507.02860).

    Where a step was run, `k = |v - v_run| / |x - x_run|` tells how much the velocity moves when the latents do. A step
    is expected to change the velocity by `k |x - x_previous| / |v_run|`, and is run when the sum is not below the
    threshold. It needs no calibration. The first steps and the last one are always run.
    """

    def __init__(self, steps: int, threshold: float, warmup: int):
        self.steps, self.threshold, self.warmup = steps, threshold, max(warmup, 2)
        self._differences: dict[Pass, Tensor] = {}  # velocity minus latents
        self._previous: Tensor | None = None  # latents of the step before
        self._run: tuple[Tensor, Tensor] | None = None  # latents and velocity of the last step that was run
        self._rate, self._error = math.inf, 0.0
        self._decided, self._runs = -1, True

    def velocity(self, asked: Forward) -> Tensor:
        """The velocity `c t h w`; of a reused step not even the embeddings are computed."""
        if asked.step != self._decided:
            self._decided, self._runs = asked.step, self._decide(asked.step, asked.latents)
        if not self._runs and asked.pass_ in self._differences:
            return asked.latents + self._differences[asked.pass_]
        velocity = asked.transformer(asked.latents, asked.timestep, asked.heard)
        self._differences[asked.pass_] = velocity - asked.latents
        if asked.pass_ is Pass.COND:
            self._learn(asked.latents, velocity)
        return velocity

    def _decide(self, step: int, latents: Tensor) -> bool:
        always = step < self.warmup or step == self.steps - 1
        error = math.inf if always else self._error + self._expected_change(latents)
        run = not error < self.threshold  # also where it is not a number
        self._error, self._previous = 0.0 if run else error, latents
        return run

    def _expected_change(self, latents: Tensor) -> float:
        moved = (latents - self._previous).abs().mean()
        return self._rate * safe_ratio(moved, self._run[1].abs().mean()).item()

    def _learn(self, latents: Tensor, velocity: Tensor) -> None:
        if self._run is not None:
            before, velocity_before = self._run
            rate = safe_ratio((velocity - velocity_before).abs().mean(), (latents - before).abs().mean())
            self._rate = rate.item()
        self._run = latents, velocity


class FirstBlockCache:
    """Runs the first block, and the others only if what it adds has changed (ParaAttention's first-block cache).

    The change is `mean |now - run| / mean |run|` against the last step that was run. The last step is always run.
    """

    def __init__(self, steps: int, threshold: float, warmup: int):
        self.steps, self.threshold, self.warmup = steps, threshold, max(warmup, 1)
        self._added: Tensor | None = None  # by the first block, in the first pass of the last step that was run
        self._rest: dict[Pass, Tensor] = {}  # added by the other blocks
        self._decided, self._runs = -1, True

    def velocity(self, asked: Forward) -> Tensor:
        """The velocity `c t h w`; embeddings, first block and head are computed in any case."""
        transformer, heard = asked.transformer, asked.heard
        tokens, time = transformer.embed(asked.latents, asked.timestep, heard)
        first = transformer.run_blocks(tokens, time, heard, slice(0, 1))
        if asked.step != self._decided:
            self._decided, self._runs = asked.step, self._decide(asked.step, first - tokens)
        if self._runs or asked.pass_ not in self._rest:
            after = transformer.run_blocks(first, time, heard, slice(1, None))
            self._rest[asked.pass_] = after - first
        else:
            after = first + self._rest[asked.pass_]
        return transformer.head(after, time, heard)

    def _decide(self, step: int, added: Tensor) -> bool:
        always = step < self.warmup or step == self.steps - 1
        run = always or relative_change(added, self._added).item() >= self.threshold
        self._added = added if run else self._added
        return run
