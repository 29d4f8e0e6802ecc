"""Named tensors of a weights file or of several, read no further than their headers until a tensor is needed."""

from __future__ import annotations

import mmap
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import WeightsError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.uint8,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items() if name != "F8_E8M0"}
MAX_NUMBERS = 2**48  # of a tensor; empty ones may have sides that torch cannot multiply
COUNT_DIGITS = 6  # of a number of heads or layers


@dataclass(frozen=True)
class Entry:
    """The header of a tensor.

    Attributes:
        shape: as the network sees it, also where values are packed into blocks.
        dtype: "F16", "F8_E4M3", ... of `DTYPES`, or a GGUF block type such as "Q4_K".
        num_bytes: in the file.
        offset: of the first byte in the file.
    """

    shape: tuple[int, ...]
    dtype: str
    num_bytes: int
    offset: int = 0


class Source(ABC):
    """Named tensors of a file or of several files.

    Attributes:
        path: the user's choice.
        entries: the header, by tensor name.
        metadata: text that the file carries with its tensors; of a GGUF also numbers and lists. Of several files the
            last one's value of a name.
        config: the `config.json` in its folder, empty without one.
    """

    path: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, Any]
    config: Mapping[str, Any]

    @abstractmethod
    def get(self, key: str) -> Tensor:
        """The tensor `key`, backed by the file where it can be; bytes (`rows row_bytes`) where it is in GGUF blocks."""

    @property
    def headers(self) -> list[Mapping[str, Any]]:
        """The metadata of each file."""
        return [self.metadata]

    @property
    def name(self) -> str:
        """The file's name, for people."""
        return self.path.name

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.num_bytes for entry in self.entries.values())


class MappedFile(Source):
    """A file whose tensors lie in it as plain bytes; they are mapped, and read when they are first used.

    The mapping is read-only, so that a file may be larger than the memory: a private one would be charged in full by
    Windows, and refused by Linux. A tensor has to be copied before it is written to.
    """

    def __init__(self, path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, Any]):
        self.path, self.entries, self.metadata, self.config = path, entries, metadata, {}
        self._check_length()

    def get(self, key: str) -> Tensor:
        entry = self.entries[key]
        dtype = DTYPES.get(entry.dtype)
        data = self._bytes[entry.offset : entry.offset + entry.num_bytes]
        if dtype is None:
            return data.view(*entry.shape[:-1], -1)
        if entry.offset % dtype.itemsize:  # an unaligned header: such bytes cannot be seen as wider numbers in place
            data = data.clone()
        return data.view(dtype).view(entry.shape)

    @cached_property
    def _bytes(self) -> Tensor:
        with self.path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            return torch.frombuffer(mapping, dtype=torch.uint8)

    def _check_length(self) -> None:
        length = max((entry.offset + entry.num_bytes for entry in self.entries.values()), default=0)
        size = self.path.stat().st_size
        if any(prod(max(side, 1) for side in entry.shape) > MAX_NUMBERS for entry in self.entries.values()):
            raise WeightsError(f"{self.name} is damaged: a tensor has no possible shape; download it again.")
        if size < length:
            raise WeightsError(
                f"{self.name} is incomplete: its header says {length:,} bytes, the file has {size:,} bytes; download "
                f"it again."
            )


class TensorSource(Source):
    """Tensors that are in memory, or mapped by torch, already."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]):
        self.path, self.tensors, self.metadata, self.config = path, tensors, {}, {}
        self.entries = {
            key: Entry(tuple(tensor.shape), DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), tensor.nbytes)
            for key, tensor in tensors.items()
        }

    def get(self, key: str) -> Tensor:
        return self.tensors[key]


class MultiFileSource(Source):
    """Several files as one: shards, or a base and the files that an index adds to it."""

    def __init__(self, path: Path, parts: list[Source]):
        self.path, self.parts, self.config = path, parts, {}
        self.entries = {key: entry for part in parts for key, entry in part.entries.items()}
        self.metadata = {key: value for part in parts for key, value in part.metadata.items()}
        self._part_of = {key: part for part in parts for key in part.entries}

    @property
    def headers(self) -> list[Mapping[str, Any]]:
        return [header for part in self.parts for header in part.headers]

    def get(self, key: str) -> Tensor:
        return self._part_of[key].get(key)


def num_heads_in(source: Source) -> int | None:
    """The number of attention heads, which leaves no trace in shapes, as the file or its `config.json` states it."""
    return stated_number([source], "num_heads", "num_attention_heads")


def stated_number(sources: Iterable[Source], *fields: str) -> int | None:
    """A count that the files' own metadata or configuration has under one of these names.

    Raises:
        WeightsError: the value is no count.
    """
    for source in sources:
        for settings in (source.metadata, source.config):
            for field in fields:
                if field in settings:
                    return _count_in(source, field, settings[field])
    return None


def _count_in(source: Source, field: str, value: object) -> int:
    text = str(value)
    if not text.isdecimal() or len(text) > COUNT_DIGITS or int(text) < 1:
        raise WeightsError(f"{source.name} says {field} = {value!r}, which is no number of them; download it again.")
    return int(text)


def readable_size(num_bytes: int) -> str:
    """`16.4 GB`, `3.1 MB` or `135 bytes`; powers of ten."""
    for power, unit in ((9, "GB"), (6, "MB")):
        if num_bytes >= 10**power:
            return f"{num_bytes / 10**power:.1f} {unit}"
    return f"{num_bytes} bytes"


def readable_shape(shape: Iterable[int]) -> str:
    """`5120x36x1x2x2`; "none" of a single number."""
    return "x".join(map(str, shape)) or "none"
