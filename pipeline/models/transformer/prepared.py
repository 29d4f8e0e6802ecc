"""What does not change from step to step: prepared once, held by the window and its passes, never by the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ...shapes import LatentSize

T = TypeVar("T")
Made = TypeVar("Made")


class Constant(Generic[T]):
    """Something that stays the same over the steps, and what layers have made of it so far.

    A layer's share is computed when the layer asks for the first time, from inside its own forward: so it works with
    whoever moves weights around that forward.
    """

    def __init__(self, value: T):
        self.value = value
        self._made: dict[Callable, object] = {}

    @torch.compiler.disable
    def cached(self, layer: Callable[[T], Made]) -> Made:
        """`layer(value)`, computed at the first call. `layer` is a bound method: it is its own key."""
        if layer not in self._made:
            self._made[layer] = layer(self.value)
        return self._made[layer]


class WindowInputs:
    """One context window: its size, what is known of its frames, and who is where.

    Made by `MultiTalkTransformer.prepare_window`, which tells the shapes.
    """

    def __init__(self, size: LatentSize, condition: Tensor, image_embeds: Tensor, speaker_masks: Tensor | None):
        self.size = size
        self.num_classes = 0 if speaker_masks is None else len(speaker_masks)
        self.place, self.condition = Constant(size), Constant(condition)
        self.image_embeds, self.speaker_masks = Constant(image_embeds), Constant(speaker_masks)
        self._shared: dict[int, Constant[Tensor]] = {}

    def constant(self, tensor: Tensor) -> Constant[Tensor]:
        """The one constant of this very tensor: passes that share a prompt or a voice share what is made of it."""
        return self._shared.setdefault(id(tensor), Constant(tensor))


class PassInputs:
    """One of the passes that guidance compares: a window with a prompt and with voices.

    Made by `MultiTalkTransformer.prepare_pass`, which tells the shapes.
    """

    def __init__(self, window: WindowInputs, prompt_embeds: Tensor, audio: Tensor):
        self.window = window
        self.num_speakers = len(audio)  # one, of silence, in the audio-free passes, however many persons there are
        self.prompt_embeds, self.audio = window.constant(prompt_embeds), window.constant(audio)
