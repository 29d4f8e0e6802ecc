"""Where networks stay while they run: whole on the device, or the transformer's blocks streamed through it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn

from .errors import ConfigError
from .host import Host
from .shapes import LatentSize

logger = logging.getLogger(__name__)

GB = 10**9
WINDOW = 2  # blocks in flight: the one that runs and the one that is being copied
ACTIVATION_TENSORS = 20  # tokens x width tensors alive in a block: q, k, v, the FFN's middle, norms
RESERVE = GB // 2  # left to the allocator, the kernels' scratch and whoever else draws on the card


class Memory(str, Enum):
    """How much of the device a run may take for itself."""

    AUTO = "auto"
    GB8 = "8 GB"
    GB12 = "12 GB"
    GB16 = "16 GB"
    GB24 = "24 GB"
    ALL = "all"

    @property
    def limit(self) -> int | None:
        """Bytes, or None where free memory decides."""
        return None if self in (Memory.AUTO, Memory.ALL) else int(self.value.split()[0]) * GB


@dataclass(frozen=True)
class MemoryConfig:
    """How the transformer may use the device's memory."""

    memory: Memory = Memory.AUTO
    resident_blocks: int | None = None  # blocks that never leave the device; None lets `memory` decide

    def __post_init__(self) -> None:
        if self.resident_blocks is not None and self.resident_blocks < 0:
            raise ConfigError(
                f"resident_blocks must not be negative, got {self.resident_blocks}. 0 streams all blocks."
            )


@dataclass(frozen=True)
class Placement:
    """How many blocks stay on the device, and what the run is expected to take there (bytes)."""

    resident_blocks: int
    num_blocks: int
    estimate: int

    @property
    def streams(self) -> bool:
        """Whether any block comes and goes."""
        return self.resident_blocks < self.num_blocks

    def describe(self) -> str:
        """One line for the log."""
        kept = "all" if not self.streams else f"{self.resident_blocks} of"
        return f"{kept} {self.num_blocks} blocks stay on the device; about {self.estimate / GB:.1f} GB"


def num_bytes(module: nn.Module) -> int:
    """Bytes of the module's parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(module))


@dataclass(frozen=True)
class Footprint:
    """What a transformer takes, as far as its placement is concerned; known from its files' headers too.

    Attributes:
        block_bytes: of the largest block.
        outer_bytes: of all that is in no block.
        width: channels of a token.
    """

    num_blocks: int
    block_bytes: int
    outer_bytes: int
    width: int

    @classmethod
    def of(cls, transformer: nn.Module) -> Footprint:
        """That of a network."""
        blocks = [num_bytes(block) for block in transformer.blocks]
        width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        return cls(len(blocks), max(blocks), num_bytes(transformer) - sum(blocks), width)


def plan_placement(transformer: nn.Module, config: MemoryConfig, size: LatentSize, free: int) -> Placement:
    """How to place `transformer` for windows of `size`, given `free` bytes on the device; see `place`."""
    return place(Footprint.of(transformer), config, size, free)


def place(footprint: Footprint, config: MemoryConfig, size: LatentSize, free: int) -> Placement:
    """How to place a transformer for windows of `size`, given `free` bytes on the device.

    The estimate is weights + `ACTIVATION_TENSORS` tensors of tokens x width in two bytes + a reserve. Whole placement
    is chosen where it fits; else as many blocks stay as fit beside the two in flight.
    """
    num_blocks, block_bytes = footprint.num_blocks, footprint.block_bytes
    base = footprint.outer_bytes + ACTIVATION_TENSORS * 2 * footprint.width * size.num_tokens + RESERVE
    resident = config.resident_blocks
    if resident is None:
        budget = free if config.memory.limit is None else min(config.memory.limit, free)
        fits = config.memory is Memory.ALL or base + block_bytes * num_blocks <= budget
        resident = num_blocks if fits else max(0, (budget - base) // block_bytes - WINDOW)
    resident = min(resident, num_blocks)
    in_flight = min(WINDOW, num_blocks - resident)
    return Placement(resident, num_blocks, base + block_bytes * (resident + in_flight))


@contextmanager
def resident(module: nn.Module, host: Host) -> Iterator[nn.Module]:
    """Keeps `module` on the host's device for a while, and takes it back to where it was."""
    home = next(_tensors(module)).device
    module.to(host.device)
    try:
        yield module
    finally:
        module.to(home)


class PlacedTransformer:
    """A transformer on the device, wholly or block by block; `lower` makes room when memory runs out."""

    def __init__(self, transformer: nn.Module, placement: Placement, host: Host):
        self.transformer, self.host = transformer, host
        self.placement = placement
        self._home = _Home(transformer)
        self._stream: BlockStream | None = None
        self._place()

    def lower(self) -> bool:
        """Streams all blocks from now on; False when it already did."""
        if self.placement.resident_blocks == 0:
            return False
        self.release()
        self.placement = Placement(0, self.placement.num_blocks, 0)
        self._place()
        logger.warning("The device ran out of memory: all blocks are streamed from here on.")
        return True

    def release(self) -> None:
        """Takes everything back to where it was."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._home.restore()

    def _place(self) -> None:
        blocks = list(self.transformer.blocks)
        streamed = blocks[self.placement.resident_blocks :]
        inside = {id(tensor) for block in streamed for tensor in _tensors(block)}
        for tensor in _tensors(self.transformer):
            if id(tensor) not in inside:
                tensor.data = tensor.data.to(self.host.device)
        if streamed:
            self._stream = BlockStream(streamed, self.host.device)


@contextmanager
def placed(transformer: nn.Module, config: MemoryConfig, size: LatentSize, host: Host) -> Iterator[PlacedTransformer]:
    """Places `transformer` for windows of `size` as `config` says, and puts it back afterwards."""
    placement = plan_placement(transformer, config, size, host.free_memory())
    logger.info("memory = %s: %s.", config.memory.value, placement.describe())
    holder = PlacedTransformer(transformer, placement, host)
    try:
        yield holder
    finally:
        holder.release()


class BlockStream:
    """Brings each block to the device when its turn comes, the next one being copied meanwhile.

    Blocks run in a fixed order, round and round. On CUDA the copies run on a stream of their own, from a pinned window
    of `WINDOW` blocks; elsewhere they are plain copies.
    """

    def __init__(self, blocks: list[nn.Module], device: torch.device):
        self._blocks, self._device = blocks, device
        self._homes = [_Home(block) for block in blocks]
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
        for tensor, copy in zip(_tensors(self._blocks[index]), self._copies[index], strict=True):
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


class _Home:
    """Remembers where a module's tensors were, and brings them back without a copy."""

    def __init__(self, module: nn.Module):
        self._module = module
        self.tensors = [tensor.data for tensor in _tensors(module)]

    def restore(self) -> None:
        for tensor, data in zip(_tensors(self._module), self.tensors, strict=True):
            tensor.data = data


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
