"""Weights that stay as their file stores them, and become numbers when they are used.

One linear layer serves all packagings: plain numbers of another dtype (fp16, fp8), scaled ones (fp8, int8; per tensor
or per row; of ComfyUI, optimum-quanto, LightX2V), GGUF blocks, and what comfy-kitchen can decode. What is packed
is held as bytes, so that `module.to(dtype)` cannot widen it by accident.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..acceleration.fp8_products import FP8, Product
from ..errors import WeightsError

if TYPE_CHECKING:
    from .lora_layouts import Update

FP8_SIDE = 16  # of which both sides of a float8 matrix are multiples
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
        row_scale = scale.view(torch.float32).reshape(-1, 1)
        if self.rotation:
            return _unrotate(numbers.float() * row_scale, self.rotation).to(dtype)
        if numbers.dtype.itemsize > 1:
            return (numbers.float() * row_scale).to(dtype)
        return numbers.to(dtype).mul_(row_scale)  # 8 bits are exact in 16, and torch multiplies in the scale's float32


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

    The sum is made at each use: a LoRA acts as if merged, and taking it away leaves the packed weight as it was. Making
    a matrix costs far less than multiplying a video's tokens by it. Where the stored weight is multiplied itself, low
    ranks are multiplied beside it.

    Attributes:
        deltas: an `Update` for each LoRA.
        fp8_product: multiplies the weight as it is stored, see `fp8_products`; None decodes it.
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
        self.fp8_product: Product | None = None

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

    @property
    def _updates(self) -> Iterable[Update]:
        return cast("Iterable[Update]", self.deltas)

    @property
    def stores_fp8(self) -> bool:
        """The weight is float8 in sides of 16, which cards multiply, and what LoRAs add to it is of low rank."""
        is_even = not (self.in_features % FP8_SIDE or self.out_features % FP8_SIDE)
        low_ranks = all(update.is_low_rank for update in self._updates)
        return self.encoding == Numbers(FP8) and self.compute_dtype is torch.bfloat16 and is_even and low_ranks

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight with its LoRAs, `out in`.

        In float32 the sum is rounded once. In 16 bits the weight is rounded, and with each LoRA of low rank again,
        which spares its float32: in bfloat16 0.24 % off, not 0.17, with one LoRA, where 8 bits alone are 2.7 % off.
        """
        packed = PackedMatrix(self.data, self.encoding, self.scale, self.outer_scale)
        low_ranks = all(update.is_low_rank for update in self._updates)
        weight = packed.decode(dtype if low_ranks else torch.float32)
        for update in self._updates:
            weight = update.add_to(weight)
        return weight.to(dtype)

    def product(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """The layer with its weight made ready, for several uses in a row."""
        bias = None if self.bias is None else self.bias.to(dtype)
        if self.fp8_product is not None:
            return partial(self._multiply_stored, self.fp8_product, bias)
        return partial(linear, weight=self.dense(dtype), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """`... out_features` of `... in_features`, in the dtype of `x`."""
        return self.product(x.dtype)(x)

    def _multiply_stored(self, product: Product, bias: Tensor | None, x: Tensor) -> Tensor:
        rows, scale = x.reshape(-1, self.in_features), torch.ones(1, 1, device=x.device)
        if self.scale is not None:
            scale = self.scale.view(torch.float32).reshape(-1, 1)
        output = product(rows, self.data.view(FP8), scale.expand(self.out_features, 1), bias)
        for update in self._updates:
            update.add_product(output, rows)
        return output.view(*x.shape[:-1], self.out_features)

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


@lru_cache
def decodes_float8(device: torch.device) -> bool:
    """True for a device that can turn float8 into numbers; Apple's GPUs cannot."""
    if device.type in ("cpu", "cuda"):
        return True
    try:
        torch.zeros(1, dtype=torch.uint8, device=device).view(FP8).float()
    except (RuntimeError, TypeError):
        return False
    return True


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
