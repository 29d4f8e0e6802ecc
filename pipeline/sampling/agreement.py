"""Decisions that all ranks of a run take alike, and the one process that has nobody to agree with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from torch import Tensor

from .guidance import Pass

Passes = tuple[Pass, ...]
Velocities = dict[Pass, Tensor]


class Peers(Protocol):
    """Ranks that work on the same thing and fail or go on together."""

    def together(self) -> AbstractContextManager[None]:
        """Context whose error, on any of the ranks, is raised on all of them."""
        ...

    def any(self, question: Callable[[], bool]) -> bool:
        """True where `question()` is true on one of the ranks; its error is raised on all."""
        ...


class Agreement(Protocol):
    """The ranks of a run, and each decision that they take once for all of them.

    Attributes:
        ranks: all of them.
        pass_ranks: those that share the tokens of one forward.
    """

    @property
    def ranks(self) -> Peers: ...

    @property
    def pass_ranks(self) -> Peers: ...

    def decide(self, question: Callable[[], bool]) -> bool:
        """The first rank's answer; asked once a step, in its first pass, by every rank."""
        ...

    def mean(self, tokens: Tensor) -> Tensor:
        """The mean over the tokens of all shares of a forward, 0-dim."""
        ...

    def own_passes(self, passes: Passes) -> Passes:
        """Those of a step's passes whose velocities this rank predicts, one at least."""
        ...

    def all_velocities(self, passes: Passes, own: Velocities) -> Velocities:
        """The velocities of all passes, each float32 `c t h w`, from every rank's own."""
        ...

    def latents(self, latents: Tensor) -> Tensor:
        """The first rank's latents: unequal devices must not drift apart."""
        ...


class NoPeers:
    """One rank for itself."""

    def together(self) -> AbstractContextManager[None]:
        """Nothing to share."""
        return nullcontext()

    def any(self, question: Callable[[], bool]) -> bool:
        """Its own answer."""
        return question()


class OneProcess:
    """A run in one process: every decision is its own."""

    ranks = pass_ranks = NoPeers()

    def decide(self, question: Callable[[], bool]) -> bool:
        """The answer."""
        return question()

    def mean(self, tokens: Tensor) -> Tensor:
        """The mean."""
        return tokens.mean()

    def own_passes(self, passes: Passes) -> Passes:
        """All of them."""
        return passes

    def all_velocities(self, passes: Passes, own: Velocities) -> Velocities:
        """Its own."""
        return own

    def latents(self, latents: Tensor) -> Tensor:
        """As they are."""
        return latents


ONE_PROCESS = OneProcess()
