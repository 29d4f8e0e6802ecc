"""Blocks streamed through the device, each copied while the one before it runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from ..models.transformer.inputs import untraced

logger = logging.getLogger(__name__)

BLOCKS_IN_FLIGHT = 2  # on the device: the one that runs and the one that is being copied


class BlockStream:
    """Copies each block to the device before it runs, while the block before it runs.

    Blocks run in a fixed order, round and round. On CUDA the copies run on a stream of their own, from pinned memory,
    and the host waits until a block has run before it copies the next but one: else it would run ahead of the device
    and fill it with copies. Elsewhere they are plain copies.

    Args:
        can_pin: whether the host's memory may be pinned; where it cannot be, copies are slower.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device, can_pin: bool = True):
        self._blocks, self._device, self._can_pin = blocks, device, can_pin
        self._originals = [OriginalTensors(block) for block in blocks]
        self._copies: dict[int, list[Tensor]] = {}
        self._copy_stream = copy_stream(device) if device.type == "cuda" else None
        self._last_end: torch.Event | None = None  # of the block before
        self._hooks = []
        for index, block in enumerate(blocks):
            self._hooks.append(block.register_forward_pre_hook(_hook(self._enter, index)))
            self._hooks.append(block.register_forward_hook(_hook(self._leave, index), always_call=True))

    def close(self) -> None:
        """Ends the streaming and restores the blocks' weights."""
        for hook in self._hooks:
            hook.remove()
        for originals in self._originals:
            originals.restore()
        self._copies.clear()

    def _enter(self, index: int) -> None:
        self._fetch(index)
        if self._copy_stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._copy_stream)
        for tensor, copy in zip(tensors_of(self._blocks[index]), self._copies[index], strict=True):
            tensor.data = copy

    def _leave(self, index: int) -> None:
        self._originals[index].restore()
        copies = self._copies.pop(index, [])  # none where a hook before ours has raised
        if self._copy_stream is not None:
            stream = torch.cuda.current_stream(self._device)
            for copy in copies:
                copy.record_stream(stream)
            if self._last_end is not None:
                self._last_end.synchronize()
            self._last_end = stream.record_event()
        del copies
        if len(self._blocks) > 1:
            self._fetch((index + 1) % len(self._blocks))

    def _fetch(self, index: int) -> None:
        if index in self._copies:
            return
        sources = self._originals[index].tensors
        if self._copy_stream is None:
            self._copies[index] = [source.to(self._device, copy=True) for source in sources]
            return
        with torch.cuda.stream(self._copy_stream):
            self._copies[index] = [source.to(self._device, non_blocking=True) for source in self._pinned(sources)]

    def _pinned(self, sources: list[Tensor]) -> list[Tensor]:
        if not self._can_pin:
            return sources
        try:
            return [source.pin_memory() for source in sources]
        except RuntimeError as error:
            self._can_pin, reason = False, str(error).partition("\n")[0]
            logger.warning("No more memory can be pinned (%s): blocks are copied more slowly.", reason)
            return sources


@lru_cache
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream of copies to a device: memory that was used on a stream stays reserved for it."""
    return torch.cuda.Stream(device)


def _hook(function: Callable[[int], None], index: int) -> Callable[..., None]:
    """`function(index)` as a hook that a compiler leaves alone: traced, the exchange of weights would be an error."""
    return untraced(lambda *_: function(index))


class OriginalTensors:
    """A module's tensors as they are now, to be restored later without a copy."""

    def __init__(self, module: nn.Module):
        self._module = module
        self.tensors = [tensor.data for tensor in tensors_of(module)]

    def restore(self) -> None:
        """Puts them back into the module."""
        for tensor, data in zip(tensors_of(self._module), self.tensors, strict=True):
            tensor.data = data


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """The module's parameters and buffers, always in the same order."""
    yield from module.parameters()
    yield from module.buffers()
