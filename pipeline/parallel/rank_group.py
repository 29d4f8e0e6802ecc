"""Ranks that exchange tensors, and that fail or go on together.

Every exchange is preceded by a vote, in which a rank that failed says so; all others then raise its error instead of
waiting for it. A failed rank votes once, so all ranks of a group take part in the same sequence of collectives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import MultiTalkError, NumericalError
from ..memory.out_of_memory import is_out_of_memory

TIMEOUT = timedelta(minutes=45)  # longer than a rank may be silent: a first read of 28 GB, a compilation
MESSAGE_BYTES = 1024  # of a failure


class Cancelled(Exception):
    """The run was to end."""


class RankFailure(RuntimeError):
    """A fault in another rank, whose own log has its traceback."""


FAILURES: tuple[type[BaseException], ...] = (Cancelled, torch.OutOfMemoryError, NumericalError, MultiTalkError)


class _Vote(Exception):
    """A failure of a group, as the vote has told it."""

    def __init__(self, group: RankGroup, error: BaseException):
        self.group, self.error = group, error


class RankGroup:
    """Some ranks of a run.

    Args:
        ranks: their numbers in the whole run.
        device: of this rank's tensors.
    """

    def __init__(self, ranks: Sequence[int], device: torch.device):
        self.ranks, self.device, self.size = list(ranks), device, len(ranks)
        self._group = cast("dist.ProcessGroup", dist.new_group(self.ranks, timeout=TIMEOUT))
        self.is_member = dist.get_rank() in self.ranks
        self.rank = self.ranks.index(dist.get_rank()) if self.is_member else -1

    @contextmanager
    def together(self) -> Iterator[None]:
        """Context whose error, on any of the ranks, is raised on all of them."""
        try:
            yield
        except _Vote as vote:
            if vote.group is self:
                raise vote.error from None
            raise  # of a larger group, whose own context knows it
        except BaseException as error:
            self._vote(error)
            raise
        try:
            self.confirm()
        except _Vote as vote:
            raise vote.error from None

    def any(self, question: Callable[[], bool]) -> bool:
        """True where `question()` is true on one of the ranks; its error is raised on all."""
        with self.together():
            answer = torch.tensor(int(question()))
        if self.size > 1:
            dist.all_reduce(answer, dist.ReduceOp.MAX, group=self._group)
        return bool(answer)

    def confirm(self) -> None:
        """Raises the error of a rank that failed, once all ranks have come here or failed."""
        error = self._vote(None)
        if error is not None:
            raise _Vote(self, error)

    def exchange(self, parts: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Sends a part to each rank, and returns the parts from each, of these shapes."""
        outgoing = torch.cat([part.flatten() for part in parts])
        lengths = [torch.Size(shape).numel() for shape in shapes]
        received = outgoing.new_empty(sum(lengths))
        self.confirm()
        dist.all_to_all_single(received, outgoing, lengths, [part.numel() for part in parts], group=self._group)
        return [part.view(*shape) for part, shape in zip(received.split(lengths), shapes, strict=True)]

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all ranks, of one shape."""
        tensor = tensor.contiguous()
        received = [torch.empty_like(tensor) for _ in self.ranks]
        self.confirm()
        dist.all_gather(received, tensor, group=self._group)
        return received

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks."""
        total = tensor.clone()
        self.confirm()
        dist.all_reduce(total, group=self._group)
        return total

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        """The tensor of the rank with number `source` in the group; the others give one of its shape and dtype."""
        tensor = tensor.contiguous()
        if self.size > 1:
            dist.broadcast(tensor, self.ranks[source], group=self._group)
        return tensor

    def _vote(self, error: BaseException | None) -> BaseException | None:
        """The failure of the first rank that has one; the ranks' votes are counted together."""
        if self.size == 1:
            return error
        failed = torch.tensor(int(error is not None))
        dist.all_reduce(failed, dist.ReduceOp.MAX, group=self._group)
        if not failed:
            return None
        votes = [torch.zeros(MESSAGE_BYTES, dtype=torch.uint8) for _ in self.ranks]
        dist.all_gather(votes, _packed(error), group=self._group)
        return next(_unpacked(vote, rank) for vote, rank in zip(votes, self.ranks, strict=True) if vote[0])


def _packed(error: BaseException | None) -> Tensor:
    """An error in bytes: one for its kind, 0 for none, then its text."""
    vote = torch.zeros(MESSAGE_BYTES, dtype=torch.uint8)
    if error is not None:
        kind = next((index for index, kind in enumerate(FAILURES) if isinstance(error, kind)), len(FAILURES))
        if is_out_of_memory(error):
            kind = FAILURES.index(torch.OutOfMemoryError)
        text = f"{error}" if kind < len(FAILURES) else f"{type(error).__name__}: {error}"
        message = bytes([1 + kind]) + text.encode()[: MESSAGE_BYTES - 1]
        vote[: len(message)] = torch.frombuffer(bytearray(message), dtype=torch.uint8)
    return vote


def _unpacked(vote: Tensor, rank: int) -> BaseException:
    kind, *text = vote.tolist()
    message = bytes(text).rstrip(b"\0").decode(errors="replace")
    if kind > len(FAILURES):
        return RankFailure(f"Rank {rank} failed: {message}")
    return FAILURES[kind - 1](message)
