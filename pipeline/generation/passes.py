"""The guidance passes of a window: their inputs, prepared once, and their forwards, some answered by a cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from ..acceleration.caches.base import ForwardInputs, StepCache
from ..host import Host
from ..memory.placement import PlacedTransformer
from ..models.transformer.inputs import PassInputs, untraced
from ..models.transformer.model import MultiTalkTransformer
from ..sampling.agreement import Agreement
from ..sampling.guidance import Pass
from ..shapes import LatentSize
from .recovery import streaming_attempts
from .window_tensors import WindowTensors


def prepare_passes(
    passes: tuple[Pass, ...],
    transformer: MultiTalkTransformer,
    size: LatentSize,
    tensors: WindowTensors,
    device: torch.device,
) -> dict[Pass, PassInputs]:
    """The inputs of each of `passes`: its prompt and its voices; passes share what is made of one that they share."""
    tensors = tensors.to(device)
    shared = transformer.prepare_window(size, tensors.condition, tensors.image_embeds, tensors.speaker_masks)
    prompts = {True: tensors.prompt_embeds, False: tensors.negative_embeds}
    voices = {True: tensors.audio, False: transformer.zero_audio(tensors.audio.shape[1]).to(device)}
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
        agreement: of the ranks that sample the window together.
    """

    def __init__(
        self,
        transformer: MultiTalkTransformer,
        inputs: Mapping[Pass, PassInputs],
        cache: StepCache | None,
        placement: PlacedTransformer,
        host: Host,
        agreement: Agreement,
    ):
        self.transformer, self.inputs, self.cache = transformer, inputs, cache
        self.placement, self.host, self.agreement = placement, host, agreement

    def __call__(self, latents: Tensor, timestep: Tensor, step: int, pass_: Pass) -> Tensor:
        """The velocity `c t h w`, noise minus clean, of latents at a timestep of 1000..0."""
        inputs = self.inputs[pass_]
        forward = partial(self.transformer, latents, timestep, inputs)
        if self.cache is not None:
            forward_inputs = ForwardInputs(self.transformer, latents, timestep, step, inputs, pass_, self.agreement)
            forward = partial(self.cache.velocity, forward_inputs)
        for attempt in streaming_attempts(self.placement, self.agreement.pass_ranks):
            with attempt, self.agreement.pass_ranks.together():
                self.host.check_cancelled()
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
