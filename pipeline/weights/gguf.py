"""GGUF files (llama.cpp): their header, and the values of their blocks, computed where the blocks lie.

Layouts of the blocks follow ggml's `ggml-common.h`. All arithmetic is in float32. diffusers has the same numbers, but
makes its tables of shifts on the host in each call: the device would wait for a copy in every forward of every matrix.
"""

from __future__ import annotations

import importlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import WeightsError
from .headers import HEADER_VALUES, HeaderReader
from .source import DTYPES, Entry, MappedFile, Source

VERSIONS = (2, 3)  # 3 differs by allowing big-endian files, which nobody makes
ALIGNMENT = 32  # where the header names no other
MAX_AXES = 8
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as a GGUF header names it.

    Attributes:
        shape: the last axis first in the file, last here.
        kind: number of the block type.
        offset: of the first byte after the header.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def read_gguf(path: Path) -> Source:
    """The header of a GGUF file.

    Raises:
        WeightsError: the file is cut off, of an unknown version, or has blocks of a type that is not supported; or the
            package gguf is missing.
    """
    try:
        with HeaderReader(path) as file:
            return _GgufHeader(file).read(path)
    except WeightsError:
        raise
    except (struct.error, ValueError, TypeError, LookupError, ArithmeticError, RecursionError, MemoryError) as error:
        raise WeightsError(
            f"{path.name} is incomplete or damaged: its header breaks off; download it again."
        ) from error


class _GgufHeader:
    """Reads a header value by value, and no more of them than `HEADER_VALUES`."""

    def __init__(self, file: HeaderReader):
        self.file, self._remaining = file, HEADER_VALUES

    def read(self, path: Path) -> Source:
        """The file's tensors and metadata."""
        _, version, num_tensors, num_fields = struct.unpack("<4sIQQ", self.file.read(24))
        if version not in VERSIONS:
            raise WeightsError(f"{path.name} is GGUF version {version}; versions 2 and 3 are supported.")
        self._take(num_tensors + num_fields)
        metadata = {self._string(): self._value(self._number("I")) for _ in range(num_fields)}
        infos = [self._tensor_info() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or alignment < 1:
            raise ValueError(f"an alignment of {alignment}")
        start = -(-self.file.tell() // alignment) * alignment
        return MappedFile(path, {info.name: _entry(info, start, path, metadata) for info in infos}, metadata)

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._number(SCALARS[kind])
        item, length = self._number("I"), self._number("Q")
        self._take(length)
        if item in (STRING, ARRAY):
            return [self._value(item) for _ in range(length)]
        return list(self._numbers(f"{length}{SCALARS[item]}"))

    def _tensor_info(self) -> TensorInfo:
        name, num_axes = self._string(), self._number("I")
        if num_axes > MAX_AXES:
            raise ValueError(f"a tensor of {num_axes} axes")
        shape = tuple(reversed(self._numbers(f"{num_axes}Q")))
        return TensorInfo(name, shape, self._number("I"), self._number("Q"))

    def _string(self) -> str:
        length = self._number("Q")
        data = self.file.read(length)
        if len(data) < length:
            raise ValueError(f"a text of {length} bytes breaks off after {len(data)}")
        return data.decode("utf-8", errors="replace")

    def _number(self, code: str) -> Any:
        return self._numbers(code)[0]

    def _numbers(self, codes: str) -> tuple:
        return struct.unpack(f"<{codes}", self.file.read(struct.calcsize(f"<{codes}")))

    def _take(self, num_values: int) -> None:
        if num_values > self._remaining:
            raise ValueError(f"{num_values} values of a header that may have {self._remaining} more")
        self._remaining -= num_values


def _entry(info: TensorInfo, start: int, path: Path, metadata: dict[str, Any]) -> Entry:
    ggml = _ggml()
    try:
        dtype = ggml.GGMLQuantizationType(info.kind).name
    except ValueError as error:
        raise WeightsError(f"{path.name} has blocks of unknown type {info.kind}; {SUPPORTED}.") from error
    if dtype not in BLOCKS and dtype not in DTYPES:
        raise WeightsError(f"{path.name} has {dtype} blocks ({info.name}); {SUPPORTED}.")
    values, num_bytes = ggml.GGML_QUANT_SIZES[info.kind]
    original = tuple(metadata.get(f"comfy.gguf.orig_shape.{info.name}", info.shape))
    if prod(original) != prod(info.shape) or (info.shape and info.shape[-1] % values):
        raise ValueError(f"{info.name} of shape {original} is stored as {info.shape} in blocks of {values}")
    return Entry(original, dtype, prod(info.shape) // values * num_bytes, start + info.offset)


def _ggml() -> ModuleType:
    """The package with the names and sizes of all block types.

    Raises:
        WeightsError: it is not installed.
    """
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise WeightsError("GGUF files need the package gguf: pip install gguf, or use an fp8_scaled file.") from error


@dataclass(frozen=True)
class Blocks:
    """The encoding of GGUF rows: blocks that hold their own scales.

    Attributes:
        kind: such as "Q4_K".
        block_bytes: of a block.
    """

    kind: str
    block_bytes: int
    by_rows: ClassVar[bool] = True

    @classmethod
    def of(cls, kind: str) -> Blocks:
        """The encoding of a type by its name."""
        ggml = _ggml()
        return cls(kind, ggml.GGML_QUANT_SIZES[ggml.GGMLQuantizationType[kind]][1])

    def decode(self, data: Tensor, scale: Tensor | None, outer_scale: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The values of packed rows, computed in float32: `rows columns` from bytes `rows row_bytes`."""
        values = BLOCKS[self.kind](data.reshape(-1, self.block_bytes))
        return values.reshape(len(data), data.shape[1] // self.block_bytes * values.shape[1]).to(dtype)


def _half(blocks: Tensor, start: int) -> Tensor:
    """The float16 at byte `start` of each block, `blocks 1`."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """The low halves of all bytes, then the high ones, on the last axis."""
    return torch.cat((packed & 0x0F, packed >> 4), dim=-1)


def _bits(packed: Tensor, width: int) -> Tensor:
    """Numbers of `width` bits: `... n` bytes -> `... 8/width n`, those in the lowest bits first."""
    shifts = torch.arange(0, 8, width, device=packed.device, dtype=torch.uint8)
    return packed.unsqueeze(-2) >> shifts.unsqueeze(-1) & (1 << width) - 1


def _fifth_bits(blocks: Tensor, start: int) -> Tensor:
    """The 32 highest bits of 5-bit numbers, `blocks 32`, from 4 bytes at `start`."""
    return _bits(blocks[:, start : start + 4], 1).transpose(1, 2).flatten(1) << 4


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).float() + _half(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * ((_nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)).float() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4)).float() + _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * blocks[:, 2:].view(torch.int8).float()


def _q2_k(blocks: Tensor) -> Tensor:
    scales, packed = blocks[:, :16], blocks[:, 16:80].reshape(-1, 2, 32)
    scale = _half(blocks, 80) * (scales & 0x0F).float()
    least = _half(blocks, 82) * (scales >> 4).float()
    values = _bits(packed, 2).reshape(-1, 16, 16).float()
    return (scale.unsqueeze(-1) * values - least.unsqueeze(-1)).flatten(1)


def _q3_k(blocks: Tensor) -> Tensor:
    high, packed, scales = blocks[:, :32], blocks[:, 32:96].reshape(-1, 2, 32), blocks[:, 96:108]
    low_bits = _nibbles(scales[:, :8])
    high_bits = _bits(scales[:, 8:], 2).flatten(1)
    scale = _half(blocks, 108) * ((low_bits | high_bits << 4).float() - 32)
    missing = 4 * (1 - _bits(high, 1).float())  # a high bit that is not set takes four away
    values = _bits(packed, 2).reshape(-1, 8, 32).float() - missing
    return (scale.unsqueeze(-1) * values.reshape(-1, 16, 16)).flatten(1)


def _scales_and_minima(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The eight 6-bit scales and minima of a Q4_K or Q5_K block, multiplied out, each `blocks 8 1`."""
    first, second, both = blocks[:, 4:16].reshape(-1, 3, 4).unbind(1)
    scale = torch.cat((first & 0x3F, both & 0x0F | first >> 2 & 0x30), dim=-1)
    least = torch.cat((second & 0x3F, both >> 4 | second >> 2 & 0x30), dim=-1)
    return (_half(blocks, 0) * scale.float()).unsqueeze(-1), (_half(blocks, 2) * least.float()).unsqueeze(-1)


def _q4_k(blocks: Tensor) -> Tensor:
    scale, least = _scales_and_minima(blocks)
    values = _bits(blocks[:, 16:].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    return (scale * values.float() - least).flatten(1)


def _q5_k(blocks: Tensor) -> Tensor:
    scale, least = _scales_and_minima(blocks)
    low = _bits(blocks[:, 48:].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    return (scale * (low | _bits(blocks[:, 16:48], 1) << 4).float() - least).flatten(1)


def _q6_k(blocks: Tensor) -> Tensor:
    low = _bits(blocks[:, :128].reshape(-1, 2, 64), 4).reshape(-1, 8, 32)
    high = _bits(blocks[:, 128:192].reshape(-1, 2, 32), 2).reshape(-1, 8, 32)
    values = ((low | high << 4).float() - 32).reshape(-1, 16, 16)
    scale = _half(blocks, 208) * blocks[:, 192:208].contiguous().view(torch.int8).float()
    return (scale.unsqueeze(-1) * values).flatten(1)


def _iq4(packed: Tensor) -> Tensor:
    return _iq4_table(packed.device)[_nibbles(packed).int()]


@lru_cache
def _iq4_table(device: torch.device) -> Tensor:
    """Made once: a copy to the device would stop it in every forward of every matrix."""
    return torch.tensor(IQ4_VALUES, dtype=torch.float32, device=device)


def _iq4_nl(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _iq4(blocks[:, 2:])


def _iq4_xs(blocks: Tensor) -> Tensor:
    high = _bits(blocks[:, 2:4], 2).transpose(1, 2).flatten(1)
    low = _bits(blocks[:, 4:8], 4).transpose(1, 2).flatten(1)
    scale = _half(blocks, 0) * ((low | high << 4).float() - 32)
    return (scale.unsqueeze(-1) * _iq4(blocks[:, 8:].reshape(-1, 8, 16))).flatten(1)


BLOCKS: dict[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "Q2_K": _q2_k, "Q3_K": _q3_k,
    "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs,
}  # fmt: skip
SUPPORTED = "use Q8_0, Q6_K, Q5_K_M, Q4_K_M or another of " + ", ".join(BLOCKS)
