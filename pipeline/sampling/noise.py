"""Every random draw of a run, from one seed and no global generator."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Noise(Protocol):
    """Source of a run's random numbers; windows count from 0."""

    def for_window(self, window: int, shape: Sequence[int]) -> Tensor:
        """The latents that a window starts from, float32."""
        ...

    def motion(self, window: int, shape: Sequence[int]) -> Iterator[Tensor]:
        """Fresh noise for the motion latents of a window: one draw before its first step and one after every step."""
        ...

    def renoise(self, window: int, shape: Sequence[int]) -> Iterator[Tensor]:
        """Fresh noise for the whole latents of a window: one draw a step, for `RenoiseSampler`."""
        ...


class NoiseSource:
    """Standard normal noise on the CPU, the same on every machine.

    Each window and purpose has a stream of its own, so that a run that goes on at its third window draws what an
    uninterrupted one would have drawn. The first window's latents are the plain first draw of the seed.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def for_window(self, window: int, shape: Sequence[int]) -> Tensor:
        """The latents that a window starts from, float32 of `shape`."""
        generator = self._generator(self.seed) if window == 0 else self._stream(window, "latents")
        return torch.randn(tuple(shape), generator=generator)

    def motion(self, window: int, shape: Sequence[int]) -> Iterator[Tensor]:
        """Fresh noise of `shape` for a window's motion latents, without an end."""
        return self._draws(window, "motion", shape)

    def renoise(self, window: int, shape: Sequence[int]) -> Iterator[Tensor]:
        """Fresh noise of `shape` for a window's steps, without an end."""
        return self._draws(window, "renoise", shape)

    def _draws(self, window: int, purpose: str, shape: Sequence[int]) -> Iterator[Tensor]:
        generator = self._stream(window, purpose)
        while True:
            yield torch.randn(tuple(shape), generator=generator)

    def _stream(self, window: int, purpose: str) -> torch.Generator:
        digest = hashlib.sha256(f"{self.seed}/{window}/{purpose}".encode()).digest()
        return self._generator(int.from_bytes(digest[:8], "little"))

    @staticmethod
    def _generator(seed: int) -> torch.Generator:
        return torch.Generator("cpu").manual_seed(seed)
