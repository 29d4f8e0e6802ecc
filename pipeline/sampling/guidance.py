"""Classifier-free guidance towards the prompt and towards the audio."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from ..config import GuidanceConfig


class Pass(str, Enum):
    """One forward of a guided step, by its conditions."""

    COND = "cond"  # prompt, audio
    DROP_TEXT = "drop_text"  # negative prompt, audio
    UNCOND = "uncond"  # negative prompt, zero audio
    DROP_AUDIO = "drop_audio"  # prompt, zero audio

    @property
    def uses_prompt(self) -> bool:
        """True with the prompt, False with the negative prompt."""
        return self in (Pass.COND, Pass.DROP_AUDIO)

    @property
    def uses_audio(self) -> bool:
        """True with the audio, False with zeros in its place."""
        return self in (Pass.COND, Pass.DROP_TEXT)


@dataclass(frozen=True)
class Term:
    """A direction of guidance, `towards - away`, and its scale, at which 1 makes it vanish."""

    scale: float
    towards: Pass
    away: Pass


class Guidance:
    """Combines the passes of each step of one window into one velocity.

        v = C + (s_text - 1) u(C - D) + (s_audio - 1) u(D - U)      text scale other than 1
        v = C + (s_audio - 1) u(C - B)                              text scale 1

    with the passes C `COND`, D `DROP_TEXT`, U `UNCOND`, B `DROP_AUDIO`. `u` leaves its argument alone, or, in adaptive
    projected guidance, is a `Projection`. Without one this is the published `U + s_text (C - D) + s_audio (D - U)`.
    Passes that cancel are not run: scale 1 of either, or both the same.

    Args:
        config: the scales.
        every: runs the other passes in every n-th step only and adds the last difference in between; 1 is exact.
        until: the step from which on they do not run any more, and the last difference is added; None is exact.
    """

    def __init__(self, config: GuidanceConfig, every: int = 1, until: int | None = None):
        self.every, self.until = every, math.inf if until is None else until
        self._terms = {term: Projection(config) if config.projected else None for term in guidance_terms(config)}
        self._difference: Tensor | float = 0.0

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The passes of a full step, `COND` first."""
        term_passes = [pass_ for term in self._terms for pass_ in (term.towards, term.away)]
        return tuple(dict.fromkeys([Pass.COND, *term_passes]))

    def passes_at(self, step: int) -> tuple[Pass, ...]:
        """The passes to run in step number `step`, counted from 0."""
        return self.passes if step % self.every == 0 and step < self.until else (Pass.COND,)

    def combine(self, velocities: Mapping[Pass, Tensor]) -> Tensor:
        """The guided velocity, from those of all `passes`, or of `COND` alone in a step between."""
        cond = velocities[Pass.COND]
        if len(velocities) == len(self.passes):
            self._difference = sum((term.scale - 1) * self._direction(term, velocities) for term in self._terms)
        return cond + self._difference

    def _direction(self, term: Term, velocities: Mapping[Pass, Tensor]) -> Tensor:
        difference = velocities[term.towards] - velocities[term.away]
        projection = self._terms[term]
        return projection(difference, velocities[Pass.COND]) if projection else difference


def guidance_terms(config: GuidanceConfig) -> tuple[Term, ...]:
    """The terms that are left of the formula in `Guidance`: two, one or none."""
    text, audio = config.text_scale, config.audio_scale
    if math.isclose(text, 1):
        terms = [Term(audio, Pass.COND, Pass.DROP_AUDIO)]
    elif math.isclose(text, audio) and not config.projected:  # D cancels
        terms = [Term(text, Pass.COND, Pass.UNCOND)]
    else:
        terms = [Term(text, Pass.COND, Pass.DROP_TEXT), Term(audio, Pass.DROP_TEXT, Pass.UNCOND)]
    return tuple(term for term in terms if not math.isclose(term.scale, 1))


class Projection:
    """Adaptive projected guidance (APG, arXiv:2410.02416) of one term over the steps of one window.

    `r <- d + momentum r`; its norm is capped, and its part parallel to the conditional velocity is removed. The next
    step goes on from the uncapped `r`.
    """

    def __init__(self, config: GuidanceConfig):
        self.momentum, self.norm_threshold = config.momentum, config.norm_threshold
        self._average = torch.zeros(())

    def __call__(self, difference: Tensor, cond: Tensor) -> Tensor:
        """The update direction for `difference`, at a right angle to `cond`; norms are over whole latents."""
        self._average = difference + self.momentum * self._average
        capped = self._average * (self.norm_threshold / self._average.norm()).clamp(max=1)
        share = (capped * cond).sum() / cond.square().sum().clamp(min=torch.finfo(cond.dtype).tiny)
        return capped - share * cond
