"""Blocks that come to the device when their turn comes, and modules that find their way home."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

WINDOW = 2  # blocks in flight: the one that runs and the one that is being copied


class BlockStream:
    """Brings each block to the device when its turn comes, the next one being copied meanwhile.

    Blocks run in a fixed order, round and round. On CUDA the copies run on a stream of their own, from pinned memory,
    and the host waits until a block has run before it copies the next but one: else it would run ahead of the device
    and fill it with copies. Elsewhere they are plain copies.

    Args:
        can_pin: whether the host's memory may be pinned; where it cannot be, copies are slower.
    """

    def __init__(self, blocks: list[nn.Module], device: torch.device, can_pin: bool = True):
        self._blocks, self._device, self._can_pin = blocks, device, can_pin
        self._homes = [OriginalTensors(block) for block in blocks]
        self._copies: dict[int, list[Tensor]] = {}
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ran: torch.cuda.Event | None = None  # the block before
        self._hooks = []
        for index, block in enumerate(blocks):
            self._hooks.append(block.register_forward_pre_hook(_untraced(self._enter, index)))
            self._hooks.append(block.register_forward_hook(_untraced(self._leave, index), always_call=True))

    def close(self) -> None:
        """Ends the streaming; the blocks' weights are at home again."""
        for hook in self._hooks:
            hook.remove()
        for home in self._homes:
            home.restore()
        self._copies.clear()

    def _enter(self, index: int) -> None:
        self._fetch(index)
        if self._side is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._side)
        for tensor, copy in zip(tensors_of(self._blocks[index]), self._copies[index], strict=True):
            tensor.data = copy

    def _leave(self, index: int) -> None:
        self._homes[index].restore()
        if self._side is not None:
            stream = torch.cuda.current_stream(self._device)
            for copy in self._copies[index]:
                copy.record_stream(stream)
        del self._copies[index]
        if self._side is not None:
            if self._ran is not None:
                self._ran.synchronize()
            self._ran = stream.record_event()
        if len(self._blocks) > 1:
            self._fetch((index + 1) % len(self._blocks))

    def _fetch(self, index: int) -> None:
        if index in self._copies:
            return
        sources = self._homes[index].tensors
        if self._side is None:
            self._copies[index] = [source.to(self._device, copy=True) for source in sources]
            return
        with torch.cuda.stream(self._side):
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


def _untraced(work: Callable[[int], None], index: int) -> Callable[..., None]:
    """`work(index)` as a hook that a compiler leaves alone: traced, the exchange of weights would be an error."""
    return torch.compiler.disable(lambda *_: work(index))


class OriginalTensors:
    """Remembers where a module's tensors were, and brings them back without a copy."""

    def __init__(self, module: nn.Module):
        self._module = module
        self.tensors = [tensor.data for tensor in tensors_of(module)]

    def restore(self) -> None:
        """Puts them back."""
        for tensor, data in zip(tensors_of(self._module), self.tensors, strict=True):
            tensor.data = data


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """The module's parameters and buffers, always in the same order."""
    yield from module.parameters()
    yield from module.buffers()
