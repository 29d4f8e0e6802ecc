"""Messages between a run and its ranks: JSON and tensors as safetensors, and no pickle."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from itertools import repeat
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import safetensors.torch
import torch
from torch import Tensor

T = TypeVar("T")
LENGTH_BYTES = 8  # of the JSON, before it


@dataclass(frozen=True, eq=False)
class Message:
    """One message: a word for its kind, numbers and text, and tensors."""

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The message as it crosses."""
        head = json.dumps({"kind": self.kind, "fields": to_json(self.fields)}).encode()
        plain = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in self.tensors.items()
        }
        return len(head).to_bytes(LENGTH_BYTES, "little") + head + safetensors.torch.save(plain)

    @classmethod
    def from_bytes(cls, data: bytes) -> Message:
        """The message that `to_bytes` made."""
        end = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
        head = json.loads(data[LENGTH_BYTES:end])
        return cls(head["kind"], head["fields"], safetensors.torch.load(data[end:]))


def socket_address(folder: Path) -> str:
    """The address at which the first rank finds the program: a file in its own folder, or on Windows a pipe."""
    return rf"\\.\pipe\{folder.name}" if sys.platform == "win32" else str(folder / "socket")


def to_json(value: Any) -> Any:
    """Choices as JSON: dataclasses without the fields that do not count, enumerations, paths, dtypes."""
    if is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value) if field.compare}
    if isinstance(value, dict):
        return {name: to_json(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return str(value) if isinstance(value, Path) else value


def from_json(kind: type[T], value: Any) -> T:
    """The value of this type that `to_json` wrote."""
    return _from_json(kind, value)


def _from_json(kind: Any, value: Any) -> Any:
    if value is None:
        return None
    if get_origin(kind) in (Union, UnionType):
        kind = next(choice for choice in get_args(kind) if choice is not NoneType)
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        kinds = repeat(kinds[0], len(value)) if kinds[-1] is Ellipsis else kinds
        return tuple(map(_from_json, kinds, value))
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{name: _from_json(hints[name], item) for name, item in value.items()})
    return getattr(torch, value) if kind is torch.dtype else kind(value)
