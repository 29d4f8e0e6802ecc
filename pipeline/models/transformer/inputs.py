"""Inputs that stay the same from step to step: computed once, held by the window and its passes, never by the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

from ...shapes import LatentSize

T = TypeVar("T")
Result = TypeVar("Result")
Function = TypeVar("Function", bound=Callable)


def untraced(function: Function) -> Function:
    """`function`, to be called by Python as it is where a compiler traces its caller."""
    return cast(Function, torch.compiler.disable(function))


class Constant(Generic[T]):
    """An input that stays the same over the steps, with the results of the layers that have read it so far.

    A layer's result is computed at its first call, from inside its own forward: so it works with whoever moves weights
    around that forward.
    """

    def __init__(self, value: T):
        self.value = value
        self._results: dict[Callable, Any] = {}

    @untraced
    def cached(self, layer: Callable[[T], Result]) -> Result:
        """`layer(value)`, computed at the first call. `layer` is a bound method: it is its own key."""
        if layer not in self._results:
            self._results[layer] = layer(self.value)
        return self._results[layer]


class WindowInputs:
    """One context window: its size, its condition, its image tokens and its speakers' masks.

    From `MultiTalkTransformer.prepare_window`, which documents the shapes.
    """

    def __init__(self, size: LatentSize, condition: Tensor, image_embeds: Tensor, speaker_masks: Tensor | None):
        self.size = size
        self.num_classes = 0 if speaker_masks is None else len(speaker_masks)
        self.grid, self.condition = Constant(size), Constant(condition)
        self.image_embeds, self.speaker_masks = Constant(image_embeds), Constant(speaker_masks)
        self._constants: dict[int, Constant[Tensor]] = {}

    def constant(self, tensor: Tensor) -> Constant[Tensor]:
        """The one constant of this very tensor: passes with the same prompt or voice share what is computed of it."""
        return self._constants.setdefault(id(tensor), Constant(tensor))


class PassInputs:
    """One of the passes that guidance compares: a window with a prompt and with voices.

    From `MultiTalkTransformer.prepare_pass`, which documents the shapes.
    """

    def __init__(self, window: WindowInputs, prompt_embeds: Tensor, audio: Tensor):
        self.window = window
        self.num_speakers = len(audio)  # one, of silence, in the audio-free passes, however many persons there are
        self.prompt_embeds, self.audio = window.constant(prompt_embeds), window.constant(audio)
