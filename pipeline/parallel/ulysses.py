"""Ulysses sequence parallel (arXiv:2309.14509): tokens are exchanged for heads around the self-attention.

Every rank holds the same share of the tokens of every latent frame, so that the attention to speech is local.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..models.transformer.inputs import untraced
from ..models.transformer.scaled_dot_product import Attend
from .rank_group import RankGroup
from .split import share_sizes


class UlyssesShares:
    """The shares of a window's tokens on the ranks of a group.

    Args:
        group: each rank of it has a share.
        num_frames: latent frames.
        frame_tokens: of each of them.
    """

    def __init__(self, group: RankGroup, num_frames: int, frame_tokens: int):
        self.group, self.num_frames = group, num_frames
        self.counts = share_sizes(frame_tokens, group.size)  # tokens of a frame on each rank

    @property
    def count(self) -> int:
        """Tokens of a frame on this rank."""
        return self.counts[self.group.rank]

    def own(self, tokens: Tensor) -> Tensor:
        """This rank's share of all tokens, `n ...`."""
        frames = tokens.unflatten(0, (self.num_frames, -1))
        return frames.split(self.counts, 1)[self.group.rank].flatten(0, 1)

    @untraced
    def whole(self, tokens: Tensor) -> Tensor:
        """All tokens, `n ...`, from every rank's share."""
        frames = tokens.unflatten(0, (self.num_frames, -1))
        return self._gather_rows(frames, 1).flatten(0, 1)

    def frame_tokens(self, count: int) -> int:
        """The sum of all shares, of which `count` is this rank's."""
        return sum(self.counts)

    @untraced
    def attend(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of this rank's tokens to all of the window, all `1 heads n k`: each rank computes some heads."""
        num_heads, width = query.shape[1], query.shape[3]
        heads, rank, t = share_sizes(num_heads, self.group.size), self.group.rank, self.num_frames
        tokens = torch.cat((query, key, value)).unflatten(2, (t, -1))  # 3 heads t s k
        shapes = [(3, heads[rank], t, count, width) for count in self.counts]
        parts = self.group.exchange(tokens.split(heads, 1), shapes)
        window = torch.cat(parts, 3).flatten(2, 3)
        attn_out = attend(*window.unsqueeze(1).unbind(0))  # 1 heads n k
        del tokens, parts, window  # each as large as query, key and value together
        shapes = [(1, count, t, self.count, width) for count in heads]
        parts = self.group.exchange(attn_out.unflatten(2, (t, -1)).split(self.counts, 3), shapes)
        return torch.cat(parts, 1).flatten(2, 3)

    @untraced
    def first_frame(self, key: Tensor) -> Tensor:
        """The keys of all tokens of the first latent frame, `1 heads s k`, from those of a share."""
        return self._gather_rows(key[:, :, : self.count], 2)

    @untraced
    def extremes(self, reference_map: Tensor) -> tuple[Tensor, Tensor]:
        """Minimum and maximum over all tokens of the window, each `classes 1`, of a share's `classes n`."""
        low, high = reference_map.aminmax(dim=1)
        lows, highs = torch.stack(self.group.gather(torch.stack((low, high)))).unbind(1)  # each ranks classes
        return lows.amin(0)[:, None], highs.amax(0)[:, None]

    def _gather_rows(self, x: Tensor, axis: int) -> Tensor:
        """All ranks' rows of `x` along an axis on which each has its count of them."""
        missing = [0, max(self.counts) - x.shape[axis]]
        padded = pad(x, [0, 0] * (x.ndim - 1 - axis) + missing)
        parts = zip(self.group.gather(padded), self.counts, strict=True)
        return torch.cat([part.narrow(axis, 0, count) for part, count in parts], axis)
