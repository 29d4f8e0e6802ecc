"""Blocks that come to the device when their turn comes, and modules that find their way home."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

WINDOW = 2  # blocks in flight: the one that runs and the one that is being copied


class BlockStream:
    """Brings each block to the device when its turn comes, the next one being copied meanwhile.

    Blocks run in a fixed order, round and round. On CUDA the copies run on a stream of their own, from a pinned window
    of `WINDOW` blocks; elsewhere they are plain copies.
    """

    def __init__(self, blocks: list[nn.Module], device: torch.device):
        self._blocks, self._device = blocks, device
        self._homes = [Home(block) for block in blocks]
        self._copies: dict[int, list[Tensor]] = {}
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._hooks = []
        for index, block in enumerate(blocks):
            self._hooks.append(block.register_forward_pre_hook(lambda *_, index=index: self._enter(index)))
            self._hooks.append(
                block.register_forward_hook(lambda *_, index=index: self._leave(index), always_call=True)
            )

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
        if len(self._blocks) > 1:
            self._fetch((index + 1) % len(self._blocks))

    def _leave(self, index: int) -> None:
        self._homes[index].restore()
        if self._side is not None:
            for copy in self._copies[index]:
                copy.record_stream(torch.cuda.current_stream(self._device))
        del self._copies[index]

    def _fetch(self, index: int) -> None:
        if index in self._copies:
            return
        sources = self._homes[index].tensors
        if self._side is None:
            self._copies[index] = [source.to(self._device, copy=True) for source in sources]
            return
        with torch.cuda.stream(self._side):
            pinned = [source.pin_memory() for source in sources]
            self._copies[index] = [source.to(self._device, non_blocking=True) for source in pinned]


class Home:
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
