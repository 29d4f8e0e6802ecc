"""A window's tokens on the devices that run one forward together: each holds the same share of every latent frame."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from .scaled_dot_product import Attend


class TokenShares(Protocol):
    """The shares of one window's tokens, and what their devices have to exchange."""

    def own(self, tokens: Tensor) -> Tensor:
        """This device's share of all tokens, `n ...`."""
        ...

    def whole(self, tokens: Tensor) -> Tensor:
        """All tokens, `n ...`, from every device's share."""
        ...

    def frame_tokens(self, count: int) -> int:
        """Tokens of a latent frame on all devices, of which this one has `count`."""
        ...

    def attend(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of this device's tokens to all of the window, all `1 heads n k`."""
        ...

    def first_frame(self, key: Tensor) -> Tensor:
        """The keys of all tokens of the first latent frame, `1 heads s k`, or more, from those of a share."""
        ...

    def extremes(self, reference_map: Tensor) -> tuple[Tensor, Tensor]:
        """Minimum and maximum over all tokens of the window, each `classes 1`, of a share's `classes n`."""
        ...


MakeShares = Callable[[int, int], TokenShares]
"""Shares of a window by its latent frames and the tokens of each."""


class WholeWindow:
    """All tokens on one device."""

    def __init__(self, num_frames: int, frame_tokens: int):
        """Of any size."""

    def own(self, tokens: Tensor) -> Tensor:
        """All of them."""
        return tokens

    def whole(self, tokens: Tensor) -> Tensor:
        """As they are."""
        return tokens

    def frame_tokens(self, count: int) -> int:
        """All of them."""
        return count

    def attend(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The kernel's result."""
        return attend(query, key, value)

    def first_frame(self, key: Tensor) -> Tensor:
        """All keys."""
        return key

    def extremes(self, reference_map: Tensor) -> tuple[Tensor, Tensor]:
        """Of the map as it is."""
        low, high = reference_map.aminmax(dim=1, keepdim=True)
        return low, high


ON_ONE_DEVICE = WholeWindow(0, 0)
