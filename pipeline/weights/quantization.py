"""Weights that stay as their file stores them, and become numbers when they are used.

One linear layer serves all packagings: plain numbers of another dtype (fp16, fp8), scaled ones (fp8, int8; per tensor
or per row; of ComfyUI, optimum-quanto, LightX2V), GGUF blocks, and what comfy-kitchen can decode. What is packed
is held as bytes, so that `module.to(dtype)` cannot widen it by accident.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import ModuleType
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..errors import WeightsError

CHUNK_BYTES = 2**23  # of packed rows that are decoded at once; their float32 is up to eight times as large
ROTATION = ((1, 1, 1, -1), (1, 1, -1, 1), (1, -1, 1, 1), (-1, 1, 1, 1))  # a regular Hadamard matrix, times 2


class Encoding(Protocol):
    """The way from bytes to numbers; `by_rows` where some of the rows can be decoded without the others."""

    by_rows: ClassVar[bool]

    def decode(self, data: Tensor, scale: Tensor | None, outer_scale: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The numbers `rows columns` in `dtype`, from bytes `rows row_bytes` and the bytes of the scales."""
        ...


@dataclass(frozen=True)
class Numbers:
    """Numbers of one dtype, times a scale of the tensor or of each row where there is one.

    Attributes:
        dtype: as stored.
        rotation: columns that ConvRot (arXiv:2512.03673) rotated together before rounding; 0 without it.
    """

    dtype: torch.dtype
    rotation: int = 0
    by_rows: ClassVar[bool] = True

    def decode(self, data: Tensor, scale: Tensor | None, outer_scale: Tensor | None, dtype: torch.dtype) -> Tensor:
        """`w s` in float32, rounded once; without a scale the numbers themselves."""
        numbers = data.view(self.dtype)
        if scale is None:
            return numbers.to(dtype)
        weight = numbers.float() * scale.view(torch.float32).reshape(-1, 1)
        return (_unrotate(weight, self.rotation) if self.rotation else weight).to(dtype)


@dataclass(frozen=True)
class Nvfp4:
    """Pairs of 4-bit floats with an 8-bit scale for each 16 and one for the tensor; comfy-kitchen decodes them."""

    by_rows: ClassVar[bool] = False  # the scales of 128 rows are interleaved

    def decode(self, data: Tensor, scale: Tensor | None, outer_scale: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The values in `dtype`."""
        assert scale is not None and outer_scale is not None  # a file without them is refused
        scale, outer_scale = scale.view(torch.float8_e4m3fn), outer_scale.view(torch.float32).reshape(())
        return comfy_kitchen("nvfp4").dequantize_nvfp4(data, outer_scale, scale, dtype)


@dataclass(frozen=True)
class Mxfp8:
    """8-bit floats with a power of two for each 32; comfy-kitchen decodes them."""

    by_rows: ClassVar[bool] = False  # the scales of 128 rows are interleaved

    def decode(self, data: Tensor, scale: Tensor | None, outer_scale: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The values in `dtype`."""
        assert scale is not None  # a file without it is refused
        scale = scale.view(torch.float8_e8m0fnu)
        return comfy_kitchen("mxfp8").dequantize_mxfp8(data.view(torch.float8_e4m3fn), scale, dtype)


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix as its file stores it.

    Attributes:
        data: bytes, `rows row_bytes`.
        encoding: how they become numbers.
        scale: bytes of the scale, or None.
        outer_scale: bytes of a scale of the scales, or None.
    """

    data: Tensor
    encoding: Encoding
    scale: Tensor | None = None
    outer_scale: Tensor | None = None

    def decode(self, dtype: torch.dtype) -> Tensor:
        """The numbers, `rows columns`; some rows at a time, for what lies between is several times as large."""
        step = max(1, CHUNK_BYTES // self.data.shape[1])
        if not self.encoding.by_rows or step >= len(self.data):
            return self.encoding.decode(self.data, self.scale, self.outer_scale, dtype)
        first = self.rows(slice(0, step)).decode(dtype)
        whole = first.new_empty(len(self.data), first.shape[1])
        whole[:step] = first
        for start in range(step, len(self.data), step):
            whole[start : start + step] = self.rows(slice(start, start + step)).decode(dtype)
        return whole

    def rows(self, index: slice | Tensor) -> PackedMatrix:
        """Some of the rows."""
        scale = self.scale
        if scale is not None and len(scale) == len(self.data):
            scale = scale[index]
        return replace(self, data=self.data[index], scale=scale)


class QuantizedLinear(nn.Module):
    """A linear layer on a packed weight, plus what LoRAs add to it: `y = x (W + sum of deltas)^T + b`.

    The sum is made in float32 and rounded once, at each use: a LoRA acts as if merged, and taking it away leaves the
    packed weight as it was. Making a matrix costs far less than multiplying a video's tokens by it.
    """

    def __init__(self, packed: PackedMatrix, shape: tuple[int, int], bias: Tensor | None, compute_dtype: torch.dtype):
        super().__init__()
        self.out_features, self.in_features = shape
        self.compute_dtype = compute_dtype
        self.encoding = packed.encoding
        self.data = nn.Parameter(packed.data, requires_grad=False)
        self.scale = _parameter(packed.scale)
        self.outer_scale = _parameter(packed.outer_scale)
        self.bias = _parameter(bias)
        self.deltas = nn.ModuleList()

    @classmethod
    def of(cls, plain: nn.Linear) -> QuantizedLinear:
        """A layer that holds the very same numbers as `plain`, so that LoRAs can be put on it."""
        weight = plain.weight.data
        packed = PackedMatrix(to_bytes(weight), Numbers(weight.dtype))
        return cls(packed, (plain.out_features, plain.in_features), plain.bias, weight.dtype)

    @property
    def weight(self) -> Tensor:
        """Shape and dtype of the weight for whoever asks; it holds no numbers, `dense` does."""
        return torch.empty(self.out_features, self.in_features, dtype=self.compute_dtype, device="meta")

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight with its LoRAs, `out in`."""
        packed = PackedMatrix(self.data, self.encoding, self.scale, self.outer_scale)
        if not len(self.deltas):
            return packed.decode(dtype)
        weight = packed.decode(torch.float32)
        for delta in self.deltas:
            weight = weight + delta()
        return weight.to(dtype)

    def decoded(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """The layer with its weight decoded, for several uses in a row."""
        bias = None if self.bias is None else self.bias.to(dtype)
        return partial(linear, weight=self.dense(dtype), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """`... out_features` of `... in_features`, in the dtype of `x`."""
        return self.decoded(x.dtype)(x)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.encoding}"


class QuantizedEmbedding(nn.Module):
    """An embedding on a packed table; only the rows that are looked up are decoded."""

    def __init__(self, packed: PackedMatrix, compute_dtype: torch.dtype):
        super().__init__()
        self.compute_dtype = compute_dtype
        self.encoding = packed.encoding
        self.data = nn.Parameter(packed.data, requires_grad=False)
        self.scale = _parameter(packed.scale)

    def forward(self, ids: Tensor) -> Tensor:
        """`... d` of `...` row numbers."""
        rows = PackedMatrix(self.data, self.encoding, self.scale).rows(ids.flatten())
        return rows.decode(self.compute_dtype).view(*ids.shape, -1)


def to_bytes(tensor: Tensor) -> Tensor:
    """The same memory as bytes, `rows row_bytes`; a single number is a row."""
    tensor = tensor.reshape(-1) if tensor.ndim == 0 else tensor
    return tensor.contiguous().view(torch.uint8)


def comfy_kitchen(needed_for: str) -> ModuleType:
    """The package that decodes ComfyUI's newest formats.

    Raises:
        WeightsError: it is not installed.
    """
    try:
        return importlib.import_module("comfy_kitchen")
    except ImportError as error:
        raise WeightsError(
            f"The weights are in the format {needed_for}: pip install comfy-kitchen (or update ComfyUI), or use an "
            f"fp8_scaled or GGUF file."
        ) from error


def _unrotate(weight: Tensor, size: int) -> Tensor:
    """`w H` in groups of `size` columns; H is its own inverse."""
    return (weight.reshape(-1, size) @ _rotation(size, weight.dtype, weight.device)).view(weight.shape)


@lru_cache
def _rotation(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """H, of Kronecker products of `ROTATION`; made once, for a copy to the device would stop it in every forward."""
    four = torch.tensor(ROTATION, dtype=dtype, device=device) / 2
    rotation = four
    while len(rotation) < size:
        rotation = torch.kron(rotation, four)
    return rotation


def _parameter(tensor: Tensor | None) -> nn.Parameter | None:
    return None if tensor is None else nn.Parameter(tensor, requires_grad=False)
