"""Each decision of a run on several ranks, taken once for all of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..sampling.agreement import Passes, Velocities
from .rank_group import RankGroup
from .split import Layout


class RankAgreement:
    """The decisions that all ranks of a run share.

    Attributes:
        ranks: all of them.
        pass_ranks: those that share the tokens of this rank's forwards.

    Args:
        device: of this rank.
    """

    def __init__(self, layout: Layout, device: torch.device):
        self.layout = layout
        self.ranks = RankGroup(range(layout.num_ranks), device)
        groups = [RankGroup(layout.ranks_of(group), device) for group in range(layout.guidance)]  # all ranks make all
        self._group = next(index for index, group in enumerate(groups) if group.is_member)
        self.pass_ranks = groups[self._group]

    def decide(self, question: Callable[[], bool]) -> bool:
        """The answer of the ranks that run the first pass; the others' question is not asked."""
        answer = torch.tensor(int(question() if self._group == 0 else False))
        self.pass_ranks.confirm()  # one that failed to answer tells these; only all of them go on to the others
        self.ranks.confirm()
        return bool(self.ranks.broadcast(answer, 0))

    def mean(self, tokens: Tensor) -> Tensor:
        """The mean over the tokens of all shares of a forward, 0-dim."""
        count = tokens.new_tensor(tokens.numel(), dtype=torch.float64)
        sums = torch.stack((tokens.sum(dtype=torch.float64), count))
        total, count = self.pass_ranks.sum(sums)
        return (total / count).to(tokens.dtype)

    def own_passes(self, passes: Passes) -> Passes:
        """Those of this rank's guidance group."""
        return self.layout.passes_of(self._group, passes)

    def all_velocities(self, passes: Passes, own: Velocities) -> Velocities:
        """The velocities of all passes, each float32 `c t h w`, from the first rank of the group that ran it."""
        if self.layout.guidance == 1:
            return own
        some, velocities = next(iter(own.values())), {}
        owners = [index % self.layout.guidance for index in range(len(passes))]
        buffers = [
            own[pass_] if group == self._group else torch.empty_like(some)
            for pass_, group in zip(passes, owners, strict=True)
        ]
        self.ranks.confirm()
        for pass_, buffer, group in zip(passes, buffers, owners, strict=True):
            velocities[pass_] = self.ranks.broadcast(buffer, group * self.layout.tokens)
        return velocities

    def latents(self, latents: Tensor) -> Tensor:
        """The first rank's latents, so that unequal devices do not drift apart."""
        latents = latents.clone()
        self.ranks.confirm()
        return self.ranks.broadcast(latents, 0)
