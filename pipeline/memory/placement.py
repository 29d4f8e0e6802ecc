"""Placement of networks while they run: whole on the device, or the transformer's blocks streamed through it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import nn

from ..choice import Choice
from ..errors import ConfigError
from ..host import Host
from ..shapes import LatentSize
from .block_streaming import BLOCKS_IN_FLIGHT, BlockStream, OriginalTensors, tensors_of
from .out_of_memory import is_out_of_memory

if TYPE_CHECKING:  # imports diffusers, which takes seconds
    from ..models.transformer.model import MultiTalkTransformer

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")

GB = 10**9
ACTIVATION_TENSORS = 8  # tokens x width alive at a block's peak: 7.0 in a rehearsal, 8.0 beside a step cache
RESERVE = GB // 2  # for the allocator, the kernels' scratch and a screen on the same card
TEXT_TOKENS, IMAGE_TOKENS, VOICE_TOKENS = 512, 257, 32  # keys of a block: a prompt, a picture, a latent frame's voice
DECODE_BYTES = 19_000  # a pixel's share of the VAE decoder's memory in float32: causal caches 9, work 8, output 2


class MemoryLimit(Choice):
    """Device memory that a run may take for itself."""

    AUTO = "auto"
    GB8 = "8 GB"
    GB12 = "12 GB"
    GB16 = "16 GB"
    GB24 = "24 GB"
    ALL = "all"

    @property
    def limit(self) -> int | None:
        """Bytes, or None where free memory decides."""
        return None if self in (MemoryLimit.AUTO, MemoryLimit.ALL) else int(self.value.split()[0]) * GB


@dataclass(frozen=True)
class MemoryConfig:
    """The transformer's share of the device's memory."""

    memory: MemoryLimit = MemoryLimit.AUTO
    resident_blocks: int | None = None  # blocks that never leave the device; None lets `memory` decide

    def __post_init__(self) -> None:
        if self.resident_blocks is not None and self.resident_blocks < 0:
            raise ConfigError(
                f"resident_blocks must not be negative, got {self.resident_blocks}. 0 streams all blocks."
            )


@dataclass(frozen=True)
class Placement:
    """The number of blocks that stay on the device, and the memory that this takes, in bytes.

    Attributes:
        estimate: of the whole run while it samples.
        weights: the transformer's part of the estimate.
        budget: the most that the run may take.
    """

    resident_blocks: int
    num_blocks: int
    estimate: int
    weights: int
    budget: int

    @property
    def streams(self) -> bool:
        """True where blocks come and go."""
        return self.resident_blocks < self.num_blocks

    def describe(self) -> str:
        """One line for the log."""
        resident = f"{self.resident_blocks} of" if self.streams else "all"
        return f"{resident} {self.num_blocks} blocks stay on the device; about {self.estimate / GB:.1f} GB"


def num_bytes(module: nn.Module) -> int:
    """Bytes of the module's parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(module))


@dataclass(frozen=True)
class Footprint:
    """Sizes of a transformer that its placement depends on; from the network, or from its files' headers.

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
    def of(cls, transformer: MultiTalkTransformer) -> Footprint:
        """The footprint of a network."""
        blocks = [num_bytes(block) for block in transformer.blocks]
        width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        return cls(len(blocks), max(blocks), num_bytes(transformer) - sum(blocks), width)

    def on(self, device: torch.device) -> Footprint:
        """The same on a device: on a CPU the weights stay in their files, which are mapped, and take no memory."""
        return replace(self, block_bytes=0, outer_bytes=0) if device.type == "cpu" else self

    @property
    def weights_bytes(self) -> int:
        """Bytes of all weights."""
        return self.num_blocks * self.block_bytes + self.outer_bytes

    def tokens_bytes(self, size: LatentSize) -> int:
        """Bytes of a window's tokens in two bytes a number."""
        return 2 * size.num_tokens * self.width

    def constant_bytes(self, size: LatentSize, num_prompts: int, num_voices: int) -> int:
        """Bytes of the keys and values of prompts, picture and voices that blocks keep from step to step."""
        rows = num_prompts * TEXT_TOKENS + IMAGE_TOKENS + num_voices * size.t * VOICE_TOKENS
        return 2 * 2 * rows * self.width * self.num_blocks


def plan_placement(
    footprint: Footprint, config: MemoryConfig, size: LatentSize, free: int, extra_bytes: int = 0
) -> Placement:
    """The placement of a transformer for windows of `size`, given `free` bytes on the device.

    The estimate is weights + `ACTIVATION_TENSORS` tensors of tokens x width in two bytes + `extra_bytes` that the run
    keeps there besides (see `constant_bytes`) + a reserve. Whole placement is chosen where it fits; else as many blocks
    stay as fit beside the two in flight.
    """
    num_blocks, block_bytes, outer = footprint.num_blocks, footprint.block_bytes, footprint.outer_bytes
    work = ACTIVATION_TENSORS * footprint.tokens_bytes(size) + extra_bytes + RESERVE
    budget = free if config.memory.limit is None else min(config.memory.limit, free)
    resident = config.resident_blocks
    if resident is None:
        num_fitting = max(0, (budget - work - outer) // block_bytes) if block_bytes else num_blocks
        fits = config.memory is MemoryLimit.ALL or num_fitting >= num_blocks
        resident = num_blocks if fits else max(0, num_fitting - BLOCKS_IN_FLIGHT)
    resident = min(resident, num_blocks)
    in_flight = min(BLOCKS_IN_FLIGHT, num_blocks - resident)
    weights = outer + block_bytes * (resident + in_flight)
    return Placement(resident, num_blocks, weights + work, weights, budget)


def decode_bytes(height: int, width: int, itemsize: int = 4) -> int:
    """Bytes that Wan's VAE takes to decode frames of this size untiled, in numbers of `itemsize` bytes."""
    return DECODE_BYTES * height * width * itemsize // 4


@contextmanager
def resident(module: M, host: Host) -> Iterator[M]:
    """Context in which `module` is on the host's device, or on the CPU where it does not fit on the device.

    Afterwards its tensors are the ones that they were.
    """
    originals = OriginalTensors(module)
    try:
        if not _move(module, host):
            originals.restore()
            logger.warning("%s does not fit on %s and works on the CPU.", type(module).__name__, host.device)
        yield module
    finally:
        originals.restore()  # `to` and back would copy what a file backs


def _move(module: nn.Module, host: Host) -> bool:
    """Moves `module` to the host's device; False where it does not fit with a reserve, or did not."""
    if host.device.type != "cpu" and host.free_memory() < num_bytes(module) + RESERVE:
        return False
    try:
        module.to(host.device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def encode_resident(module: nn.Module, host: Host, encode: Callable[[], T]) -> T:
    """`encode()` with `module` on the host's device; if memory runs out there, once more on the CPU.

    Args:
        module: the encoder's network.
        encode: moves its inputs to where `module` is.
    """
    try:
        with resident(module, host):
            return encode()
    except (RuntimeError, MemoryError) as error:
        if host.device.type == "cpu" or not is_out_of_memory(error):
            raise
    logger.warning("%s ran out of memory on %s and works on the CPU.", type(module).__name__, host.device)
    return encode()  # outside the except, where the first try's tensors are gone


class MovableWeights(Protocol):
    """A transformer's weights, which leave the device for other networks."""

    def make_room(self, vae_bytes: int) -> bool:
        """Leaves the device where `vae_bytes` are not left beside them. True when they are left now."""
        ...

    def release(self) -> None:
        """Leaves the device."""
        ...


class PlacedTransformer:
    """A transformer that goes to the device to sample, wholly or block by block, and leaves it for other networks."""

    def __init__(self, transformer: MultiTalkTransformer, placement: Placement, host: Host):
        self.transformer, self.host = transformer, host
        self.placement = placement
        self._originals = OriginalTensors(transformer)
        self._stream: BlockStream | None = None
        self._is_placed = False
        self._block_originals = [OriginalTensors(block) for block in transformer.blocks]
        self._num_there, self._bytes_there = 0, 0  # resident blocks, and bytes of all weights, that are on the device

    def place(self) -> None:
        """Moves the weights as planned, if they are not there; if memory runs out, all blocks are streamed instead."""
        if self._is_placed:
            return
        try:
            self._move()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not self.stream_all():
                raise

    def _move(self) -> None:
        self._is_placed = True
        self._num_there, self._bytes_there = self.placement.resident_blocks, self.placement.weights
        streamed = list(self.transformer.blocks)[self.placement.resident_blocks :]
        inside = {id(tensor) for block in streamed for tensor in tensors_of(block)}
        for tensor in tensors_of(self.transformer):
            if id(tensor) not in inside:
                tensor.data = tensor.data.to(self.host.device)
        if streamed and self._stream is None:
            self._stream = BlockStream(streamed, self.host.device, self.host.can_pin)

    def make_room(self, vae_bytes: int) -> bool:
        """Takes blocks off the device, until `place`, where `vae_bytes` are not left beside them.

        As many of the resident blocks leave as are needed, or everything. True when `vae_bytes` are left now.
        """
        missing = vae_bytes - self._free_bytes()
        if self._bytes_there and missing > 0:
            self._step_aside(missing)
            if self._free_bytes() < vae_bytes:
                self.release()
            logger.info(
                "%d of %d blocks stay on the device: the VAE wants %.1f GB.",
                self._num_there,
                self.placement.resident_blocks,
                vae_bytes / GB,
            )
        return self._free_bytes() >= vae_bytes

    def _step_aside(self, missing: int) -> None:
        """Takes resident blocks of `missing` bytes off the device, the last ones first."""
        self._is_placed = False
        while missing > 0 and self._num_there:
            self._num_there -= 1
            self._block_originals[self._num_there].restore()
            block_bytes = num_bytes(self.transformer.blocks[self._num_there])
            missing, self._bytes_there = missing - block_bytes, self._bytes_there - block_bytes

    def _free_bytes(self) -> int:
        """Bytes that the run may still take."""
        return min(self.host.free_memory(), self.placement.budget - self._bytes_there)

    def stream_all(self) -> bool:
        """Streams all blocks from now on; False where it already did."""
        if self.placement.resident_blocks == 0:
            return False
        self.release()
        self.placement = replace(self.placement, resident_blocks=0)
        self.place()
        logger.warning("The device ran out of memory: all blocks are streamed from here on.")
        return True

    def release(self) -> None:
        """Takes all weights off the device again."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._originals.restore()
        self._is_placed, self._num_there, self._bytes_there = False, 0, 0


@contextmanager
def placed(
    transformer: MultiTalkTransformer, config: MemoryConfig, size: LatentSize, host: Host, extra_bytes: int = 0
) -> Iterator[PlacedTransformer]:
    """The transformer with its placement for windows of `size`, restored afterwards; `place` moves it to the device."""
    footprint = Footprint.of(transformer).on(host.device)
    placement = plan_placement(footprint, config, size, host.free_memory(), extra_bytes)
    logger.info("memory = %s: %s of %.1f.", config.memory.value, placement.describe(), placement.budget / GB)
    if placement.estimate > placement.budget:
        logger.warning(
            "The run may need %.1f GB and has %.1f. Smaller pictures, shorter windows, 8-bit weights or a few-step "
            "LoRA with text scale 1 need less.",
            placement.estimate / GB,
            placement.budget / GB,
        )
    holder = PlacedTransformer(transformer, placement, host)
    try:
        yield holder
    finally:
        holder.release()
