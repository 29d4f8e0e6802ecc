"""The denoiser of a run's windows: by the network in this process, alone or as one of several ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Protocol

from torch import Tensor

from ..acceleration.caches import make_cache
from ..acceleration.presets import accelerated
from ..host import Host
from ..memory.placement import MemoryConfig, MovableWeights, PlacedTransformer, placed
from ..models.transformer.model import MultiTalkTransformer
from ..sampling.agreement import ONE_PROCESS, Agreement, Peers
from ..sampling.denoise import denoise
from ..sampling.noise import Noise
from ..sampling.samplers import make_sampler
from .passes import PassForwards, cancellable, prepare_passes
from .recipes import make_anchor
from .recovery import attention_attempts
from .run_spec import RunSpec
from .window_tensors import WindowTensors
from .windows import Window

OnStep = Callable[[int, Tensor], None]
"""Called after each step with its number, from 0, and the present estimate of the clean latents."""


class Denoiser(MovableWeights, Protocol):
    """Denoises the windows of one run, one after the other."""

    def attempts(self) -> Iterator[AbstractContextManager[object]]:
        """Tries of denoising a window; see `recovery`."""
        ...

    def prepare(self, window: Window, tensors: WindowTensors) -> Callable[[OnStep], Tensor]:
        """The denoising of a window, ready to be called: it returns the clean latents, `c t h w`."""
        ...


class LocalDenoiser:
    """Denoises with the network of this process, alone or as one of several ranks."""

    def __init__(
        self,
        transformer: MultiTalkTransformer,
        spec: RunSpec,
        placement: PlacedTransformer,
        noise: Noise,
        host: Host,
        agreement: Agreement,
    ):
        self.transformer, self.spec, self.placement = transformer, spec, placement
        self.noise, self.host, self.agreement = noise, host, agreement
        self.make_room, self.release = placement.make_room, placement.release

    def attempts(self) -> Iterator[AbstractContextManager[object]]:
        """As it is, then, if numbers went bad, with plain attention."""
        ranks = self.agreement.ranks
        for attempt in attention_attempts(self.transformer, self.host, ranks):
            yield _joint(attempt, ranks)

    def prepare(self, window: Window, tensors: WindowTensors) -> Callable[[OnStep], Tensor]:
        """The denoising of a window on the host's device, with the weights in place."""
        spec, device = self.spec, self.host.device
        size, timesteps, guidance = spec.latent_size(window), spec.timesteps(), spec.new_guidance()
        self.placement.place()
        inputs = prepare_passes(guidance.passes, self.transformer, size, tensors, device)
        cache = make_cache(spec.acceleration, self.transformer, timesteps, spec.resolution)
        forwards = PassForwards(self.transformer, inputs, cache, self.placement, self.host, self.agreement)
        latents = self.noise.for_window(window.index, size.shape).to(device)
        anchor = make_anchor(spec.model, tensors.motion_latents, self.noise, window.index)
        sampler = make_sampler(spec.sampler, self.noise, window.index, size.shape)
        return partial(denoise, forwards, latents, timesteps, guidance, anchor, sampler, agreement=self.agreement)


@contextmanager
def _joint(attempt: AbstractContextManager[object], ranks: Peers) -> Iterator[None]:
    """An attempt whose error, on any of the ranks, is the attempt's on all."""
    with attempt, ranks.together():
        yield


@contextmanager
def local_denoiser(
    transformer: MultiTalkTransformer,
    spec: RunSpec,
    noise: Noise,
    host: Host,
    memory: MemoryConfig,
    kept_bytes: int,
    agreement: Agreement = ONE_PROCESS,
) -> Iterator[LocalDenoiser]:
    """Context in which `transformer` denoises, restored afterwards.

    Args:
        noise: the random numbers.
        memory: how much of the device the transformer may take.
        kept_bytes: that stay on the device from step to step beside the weights.
        agreement: of the ranks that sample together.
    """
    first = spec.latent_size(spec.windows[0])
    with (
        accelerated(transformer, spec.acceleration, host.device, spec.steps),
        placed(transformer, memory, first, host, kept_bytes) as placement,
        cancellable(transformer, host),
    ):
        yield LocalDenoiser(transformer, spec, placement, noise, host, agreement)
