"""The guidance passes of a window: their inputs, prepared once, and their forwards, some answered by a cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from ..acceleration.caches.base import ForwardInputs, StepCache
from ..audio.embeds import AudioEmbeds
from ..conditioning.conditioning import Conditioning
from ..conditioning.speakers import to_latent_masks
from ..host import Host
from ..memory.placement import PlacedTransformer
from ..models.transformer.inputs import PassInputs, untraced
from ..models.transformer.model import MultiTalkTransformer
from ..sampling.guidance import Pass
from ..shapes import LatentSize
from .recipes import WindowStart
from .recovery import streaming_attempts
from .windows import Window


def prepare_passes(
    passes: tuple[Pass, ...],
    transformer: MultiTalkTransformer,
    window: Window,
    size: LatentSize,
    start: WindowStart,
    conditioning: Conditioning,
    audio_embeds: AudioEmbeds,
    device: torch.device,
) -> dict[Pass, PassInputs]:
    """The inputs of each of `passes`: its prompt and its voices; passes share what is made of one that they share."""
    masks = None
    if conditioning.speaker_masks is not None and audio_embeds.num_speakers > 1:
        masks = to_latent_masks(conditioning.speaker_masks, size).to(device)
    shared = transformer.prepare_window(size, start.condition.to(device), start.image_embeds.to(device), masks)
    prompts = {True: conditioning.prompt_for(window.index).to(device), False: conditioning.negative_embeds.to(device)}
    voices = {
        True: audio_embeds.window(window.feature_frames).to(device),
        False: transformer.zero_audio(window.num_frames).to(device),
    }
    return {
        pass_: transformer.prepare_pass(shared, prompts[pass_.uses_prompt], voices[pass_.uses_audio])
        for pass_ in passes
    }


class PassForwards:
    """The velocities of one window's passes.

    Args:
        inputs: of each pass.
        cache: answers some forwards from earlier ones; None runs them all.
        placement: streams the blocks when the device's memory runs out.
    """

    def __init__(
        self,
        transformer: MultiTalkTransformer,
        inputs: Mapping[Pass, PassInputs],
        cache: StepCache | None,
        placement: PlacedTransformer,
        host: Host,
    ):
        self.transformer, self.inputs, self.cache, self.placement, self.host = (
            transformer,
            inputs,
            cache,
            placement,
            host,
        )

    def __call__(self, latents: Tensor, timestep: Tensor, step: int, pass_: Pass) -> Tensor:
        """The velocity `c t h w`, noise minus clean, of latents at a timestep of 1000..0."""
        self.host.check_cancelled()
        inputs = self.inputs[pass_]
        forward = partial(self.transformer, latents, timestep, inputs)
        if self.cache is not None:
            forward = partial(
                self.cache.velocity, ForwardInputs(self.transformer, latents, timestep, step, inputs, pass_)
            )
        for attempt in streaming_attempts(self.placement):
            with attempt:
                return forward()
        raise AssertionError("the last attempt returns or raises")


@contextmanager
def cancellable(transformer: MultiTalkTransformer, host: Host) -> Iterator[None]:
    """Context in which the host may cancel before each block: a forward takes over a minute on a small card."""

    def check(*_: object) -> None:
        host.check_cancelled()

    hooks = [block.register_forward_pre_hook(untraced(check)) for block in transformer.blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
