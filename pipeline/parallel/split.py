"""The split rule: how the passes and the tokens of a run are divided among its devices."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..choice import Choice
from ..errors import ConfigError

T = TypeVar("T")


class Split(Choice):
    """The part of the work that each device takes."""

    AUTO = "auto"
    GUIDANCE = "guidance"  # whole passes: little to exchange, but at most as many devices as passes
    TOKENS = "tokens"  # a share of every latent frame's tokens: any number of passes


@dataclass(frozen=True)
class Layout:
    """A grid of ranks: `guidance` groups, each of which runs passes of its own on `tokens` shares."""

    guidance: int
    tokens: int

    @property
    def num_ranks(self) -> int:
        """Ranks of the grid."""
        return self.guidance * self.tokens

    def group_of(self, rank: int) -> int:
        """The guidance group of a rank; neighbours share tokens."""
        return rank // self.tokens

    def ranks_of(self, group: int) -> list[int]:
        """The ranks of a guidance group."""
        return list(range(group * self.tokens, (group + 1) * self.tokens))

    def passes_of(self, group: int, passes: Sequence[T]) -> tuple[T, ...]:
        """A guidance group's passes, in turn; one that would be idle repeats the first, so that all go the same way."""
        return tuple(passes[group :: self.guidance]) or tuple(passes[:1])


def choose_layout(split: Split, num_ranks: int, num_passes: int, num_heads: int, frame_tokens: int) -> Layout:
    """The layout that takes the fewest turns of passes, and among those exchanges the least.

    Args:
        num_ranks: devices.
        num_passes: of a full step: 3, 2, or 1 without guidance.
        num_heads: of the self-attention, which ranks that share tokens divide.
        frame_tokens: of a latent frame, which they divide too.

    Raises:
        ConfigError: the devices are too many, or the split needs what there is not.
    """
    layouts = [Layout(groups, num_ranks // groups) for groups in range(1, num_ranks + 1) if num_ranks % groups == 0]
    if split is Split.GUIDANCE:
        layouts = [Layout(num_ranks, 1)]
    elif split is Split.TOKENS:
        layouts = [Layout(1, num_ranks)]
    fitting = [
        layout
        for layout in layouts
        if layout.guidance <= num_passes and layout.tokens <= min(num_heads, frame_tokens) and _can_exchange(layout)
    ]
    if not fitting:
        raise ConfigError(_refusal(split, num_ranks, num_passes, num_heads, frame_tokens))
    return min(fitting, key=lambda layout: (_cost(layout, num_passes), layout.tokens))


def share_sizes(length: int, num_shares: int) -> list[int]:
    """`length` in shares that differ by one at most, the longer first."""
    each, longer = divmod(length, num_shares)
    return [each + (share < longer) for share in range(num_shares)]


def _cost(layout: Layout, num_passes: int) -> float:
    """Time of a step in forwards of one device: turns of the fullest group, each by the largest share."""
    return -(-num_passes // layout.guidance) / layout.tokens


def _can_exchange(layout: Layout) -> bool:
    """False on Windows for tokens: its torch has no NCCL, and gloo no all-to-all on GPUs."""
    return layout.tokens == 1 or sys.platform != "win32"


def _refusal(split: Split, num_ranks: int, num_passes: int, num_heads: int, frame_tokens: int) -> str:
    if sys.platform == "win32" and num_ranks > num_passes:
        return (
            f"On Windows devices can only divide the guidance passes, and this run has {num_passes} for {num_ranks} "
            f"devices. Name at most {num_passes}, or use WSL."
        )
    if split is Split.GUIDANCE:
        return (
            f"This run has {num_passes} guidance pass{'es' * (num_passes > 1)} for {num_ranks} devices. Name at most "
            f"{num_passes}, or split the tokens."
        )
    limit = min(num_heads, frame_tokens)
    return (
        f"{num_ranks} devices are too many: {num_heads} attention heads and {frame_tokens} tokens of a frame can be "
        f"shared by at most {limit}. Name fewer devices."
    )
