"""Acceleration options, the presets of them, and the context in which a transformer runs with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..config import Acceleration, GuidanceConfig
from ..errors import ConfigError
from ..sampling.guidance import Guidance
from .attention_kernels import AttentionKernel, find_kernel
from .caches import CacheKind
from .compilation import Compile, compiled
from .fp8_products import fp8_products

if TYPE_CHECKING:
    from ..models.transformer.model import MultiTalkTransformer

FEW_STEPS = 8  # up to here a checkpoint or a LoRA is distilled, and no step resembles the one before
MIN_CACHED_STEPS = 7
WARMUP_SHARE = 5  # `regular` runs the first fifth of the steps in any case: there the picture is laid out
FAST_PRODUCTS: dict[str, Any] = {"attention": AttentionKernel.FAST, "fp8_products": True}  # of `regular` and `high`
FORECAST_PARTS, HIGH_GUIDED = 5, 0.05  # `high`: into how many parts forecasts cut a run; the share that is guided


@dataclass(frozen=True)
class AccelerationOptions:
    """The single options. The defaults change nothing but the order of rounding.

    Attributes:
        cache: the step cache, which reuses what earlier steps have computed.
        threshold: the change that a cache lets pass before it runs a step again; None takes its own default.
        warmup: first steps that are always run.
        interval: the Taylor forecast runs every n-th step.
        guidance_every: the passes for guidance are run every n-th step, their last difference is kept in between.
        guidance_until: the share of the steps, 0..1, after which they are not run any more; that difference stays.
        attention: the kernel; one that fails its probe is replaced.
        compile: compiles the blocks, which takes a minute at the first step of each size; then each is 8 % faster.
        fp8_products: multiplies float8 weights as they are stored, on cards that can; activations are rounded to it.
    """

    cache: CacheKind = CacheKind.NONE
    threshold: float | None = None
    warmup: int = 5
    interval: int = 3
    guidance_every: int = 1
    guidance_until: float = 1.0
    attention: AttentionKernel = AttentionKernel.AUTO
    compile: Compile = Compile.AUTO
    fp8_products: bool = False

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 10:
            raise ConfigError(
                f"The cache threshold must be in 0..10, got {self.threshold}. The lower, the more steps run."
            )
        for name in ("warmup", "interval", "guidance_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 < self.guidance_until <= 1:
            raise ConfigError(
                f"guidance_until is a share of the steps, above 0 and at most 1, got {self.guidance_until:g}. "
                f"1 guides every step."
            )
        if self.cache is not CacheKind.NONE and self.guidance_every > 1:
            raise ConfigError(
                f"{self.cache.value} and guidance every {self.guidance_every} steps both skip forwards of the same "
                f"passes. Take one of them."
            )

    @property
    def cache_threshold(self) -> float:
        """The threshold of the cache: the given one, or its own default."""
        return self.cache.default_threshold if self.threshold is None else self.threshold

    def check(self, steps: int) -> None:
        """Raises `ConfigError` where these options do not go with so many steps."""
        if self.cache is not CacheKind.NONE and steps < MIN_CACHED_STEPS:
            raise ConfigError(
                f"{self.cache.value} finds nothing to reuse in {steps} steps. Take at least {MIN_CACHED_STEPS} steps, "
                f"or no cache."
            )


def make_guidance(options: AccelerationOptions, config: GuidanceConfig, steps: int) -> Guidance:
    """A window's guidance: which passes its steps run, and how they become one velocity."""
    until = max(1, round(options.guidance_until * steps))
    return Guidance(config, options.guidance_every, until)


def preset(acceleration: Acceleration, steps: int, text_scale: float) -> AccelerationOptions:
    """The options that a preset stands for.

    `none` is exact. `regular` reuses steps that EasyCache finds alike, a third of the forwards of 40 steps. `high`
    runs every eighth step, forecasts the others, and takes guidance from the first twentieth of the steps: 11 of
    120 forwards. `regular` keeps the lip sync of the bundled model, `high` loses 0.025 of its correlation (`python -m
    benchmarks acceleration`). Few-step runs have nothing to reuse; there `high` asks for guidance that fits a distilled
    LoRA. Both take SageAttention and products in float8 where they work.

    Raises:
        ConfigError: `high` with few steps and text guidance, which distilled LoRAs do not bear.
    """
    if acceleration is Acceleration.NONE:
        return AccelerationOptions()
    high = acceleration is Acceleration.HIGH
    if steps <= FEW_STEPS:
        if high and text_scale > 1:
            raise ConfigError(
                f"High acceleration with {steps} steps needs a distilled LoRA, and none bears a text scale of "
                f"{text_scale:g}. Set the text scale to 1 (the audio's to 1 or 2), or take more than {FEW_STEPS} steps."
            )
        return AccelerationOptions(**FAST_PRODUCTS)
    if high:
        interval = max(2, round(steps / FORECAST_PARTS))
        return AccelerationOptions(
            CacheKind.TAYLOR, warmup=2, interval=interval, guidance_until=HIGH_GUIDED, **FAST_PRODUCTS
        )
    return AccelerationOptions(CacheKind.EASY, warmup=max(2, steps // WARMUP_SHARE), **FAST_PRODUCTS)


@contextmanager
def accelerated(
    transformer: MultiTalkTransformer, options: AccelerationOptions, device: torch.device, steps: int
) -> Iterator[MultiTalkTransformer]:
    """`transformer` with these options, restored afterwards.

    Args:
        transformer: the shared model.
        options: of which kernel, products and compilation count; caches and guidance belong to the windows.
        device: of the run.
        steps: of the run.
    """
    kernels = [(block.attn1.attend, block.attn2.attend) for block in transformer.blocks]
    head_dim = transformer.config.attention_head_dim
    transformer.set_attention(find_kernel(options.attention, device, transformer.compute_dtype, head_dim))
    try:
        with (
            fp8_products(transformer, device) if options.fp8_products else nullcontext(),
            compiled(transformer, device) if options.compile.applies(device, steps) else nullcontext(),
        ):
            yield transformer
    finally:
        for block, (attend_video, attend_context) in zip(transformer.blocks, kernels, strict=True):
            block.attn1.attend, block.attn2.attend = attend_video, attend_context
