"""The interface of step caches, which leave out blocks in steps where their change of the tokens hardly changes.

A cache lives for one window and keeps tensors for each pass. All passes of a step are run or reused alike, since
guidance subtracts them from each other; the first pass of a step decides. Nothing is stored on the model, and a step
that is repeated, after memory ran out, follows the same decision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ...config import Resolution
from ...sampling.agreement import ONE_PROCESS, Agreement
from ...sampling.guidance import Pass

if TYPE_CHECKING:
    from ...models.transformer.inputs import PassInputs
    from ...models.transformer.model import MultiTalkTransformer
    from ..presets import AccelerationOptions


@dataclass(frozen=True)
class CacheSetup:
    """The window that a cache is for; `timesteps` are the `steps+1` of its run."""

    options: AccelerationOptions
    transformer: MultiTalkTransformer
    timesteps: Tensor
    resolution: Resolution

    @property
    def steps(self) -> int:
        """Steps of the run."""
        return len(self.timesteps) - 1


@dataclass(frozen=True)
class ForwardInputs:
    """The inputs of one forward of the transformer: latents `c t h w` at a timestep, in one of the passes."""

    transformer: MultiTalkTransformer
    latents: Tensor
    timestep: Tensor
    step: int
    inputs: PassInputs
    pass_: Pass
    agreement: Agreement = ONE_PROCESS

    def compute(self) -> Tensor:
        """The velocity by the whole transformer, `c t h w` in float32."""
        return self.transformer(self.latents, self.timestep, self.inputs)


class StepCache(ABC):
    """Computes velocities, some of them from what earlier steps have left.

    Attributes:
        default_threshold: its authors' recommendation for Wan, in a unit of its own; 0 where it has none.
    """

    default_threshold: ClassVar[float] = 0.0

    def __init__(self) -> None:
        self._step, self._is_run = -1, True  # the step of the last decision

    @classmethod
    @abstractmethod
    def from_setup(cls, setup: CacheSetup) -> StepCache:
        """A fresh cache."""

    @staticmethod
    def num_tensors(num_passes: int) -> int:
        """Tensors of tokens x width that it keeps from step to step in a run of so many passes."""
        return 0

    @abstractmethod
    def velocity(self, forward: ForwardInputs) -> Tensor:
        """The velocity `c t h w` in float32, computed or reused."""

    def decide(self, forward: ForwardInputs, is_run: Callable[[], bool]) -> bool:
        """True where the step of `forward` is run: `is_run()` of its first pass, on the first rank."""
        if forward.step != self._step:
            self._step, self._is_run = forward.step, forward.agreement.decide(is_run)
        return self._is_run


class ResidualCache(StepCache):
    """Reuses the residual: the change of the tokens by all blocks together. Subclasses decide which steps are run."""

    def __init__(self) -> None:
        super().__init__()
        self._residuals: dict[Pass, Tensor] = {}

    @staticmethod
    def num_tensors(num_passes: int) -> int:
        """A residual for each pass."""
        return num_passes

    @abstractmethod
    def is_run(self, step: int) -> bool:
        """True where the blocks of this step are run."""

    def velocity(self, forward: ForwardInputs) -> Tensor:
        """The velocity `c t h w`; embeddings and head are computed in any case."""
        transformer, inputs = forward.transformer, forward.inputs
        tokens, time = transformer.embed(forward.latents, forward.timestep, inputs)
        if not self.decide(forward, partial(self.is_run, forward.step)) and forward.pass_ in self._residuals:
            return transformer.head(tokens + self.residual(forward), time, inputs)
        after = transformer.run_blocks(tokens, time, inputs)
        velocity = transformer.head(after, time, inputs)
        self.keep(forward, after - tokens)
        return velocity

    def keep(self, forward: ForwardInputs, residual: Tensor) -> None:
        """Keeps the residual of a forward whose blocks were run."""
        self._residuals[forward.pass_] = residual

    def residual(self, forward: ForwardInputs) -> Tensor:
        """The residual to be used for a forward whose blocks are not run."""
        return self._residuals[forward.pass_]


def relative_change(now: Tensor, before: Tensor, mean: Callable[[Tensor], Tensor] = torch.mean) -> Tensor:
    """`mean |now - before| / mean |before|`, 0-dim."""
    return safe_ratio(mean((now - before).abs()), mean(before.abs()))


def safe_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """A quotient that is large, rather than not a number, where the denominator is 0."""
    return numerator / denominator.clamp(min=torch.finfo(denominator.dtype).tiny)
