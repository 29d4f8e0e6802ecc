"""Steps whose blocks need not be run, because what they add to the tokens hardly changes from step to step.

A cache lives for one window and keeps a memory for each pass. All passes of a step are run or reused alike, since
guidance subtracts them from each other; the first pass of a step decides. Nothing is stored on the model, and a step
that is asked for again, after memory ran out, is answered by the same decision.
"""

from __future__ import annotations

from torch import Tensor

from ..config import Resolution
from ..models.transformer.model import MultiTalkTransformer
from ..models.transformer.prepared import PassInputs
from ..sampling.guidance import Pass
from .change_cache import EasyCache, FirstBlockCache
from .forward import Forward, StepCache
from .presets import AccelerationOptions, CacheKind
from .residual_cache import MagCache, PlannedCache, interval_plan
from .teacache import TEACACHE_COEFFICIENTS, teacache_plan


def cached_forward(
    transformer: MultiTalkTransformer,
    cache: StepCache | None,
    latents: Tensor,
    timestep: Tensor,
    step: int,
    heard: PassInputs,
    pass_: Pass,
) -> Tensor:
    """The velocity `c t h w` of step number `step` in `pass_`, through `cache` if there is one."""
    if cache is None:
        return transformer(latents, timestep, heard)
    return cache.velocity(Forward(transformer, latents, timestep, step, heard, pass_))


def make_cache(
    options: AccelerationOptions, transformer: MultiTalkTransformer, timesteps: Tensor, resolution: Resolution
) -> StepCache | None:
    """A fresh cache for one window, None where the options ask for none; `timesteps` are the `steps+1` of the run."""
    steps, threshold, warmup = len(timesteps) - 1, options.cache_threshold, options.warmup
    if options.cache is CacheKind.TEA:
        coefficients = TEACACHE_COEFFICIENTS[resolution]
        return PlannedCache(teacache_plan(timesteps, transformer.time_projection, coefficients, threshold, warmup))
    if options.cache is CacheKind.TAYLOR:
        return PlannedCache(interval_plan(steps, options.interval, warmup), order=1)
    if options.cache is CacheKind.MAG:
        return MagCache(steps, threshold, warmup)
    if options.cache is CacheKind.EASY:
        return EasyCache(steps, threshold, warmup)
    if options.cache is CacheKind.FIRST_BLOCK:
        return FirstBlockCache(steps, threshold, warmup)
    return None
