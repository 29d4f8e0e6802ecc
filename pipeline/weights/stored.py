"""Which tensors of a source make up which weight of ours: values, their scales, and how they are packed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..errors import WeightsError
from .gguf import BLOCKS
from .quantization import Blocks, Encoding, Mxfp8, Numbers, Nvfp4, Packed, comfy_kitchen, to_bytes
from .source import DTYPES, Entry, Source, parse_object

VALUES, SCALE, OUTER_SCALE, FORMAT, UNUSED = "values", "scale", "outer_scale", "format", "unused"
SCALE_OF_INPUTS = "pre_quant_scale"
ROLES = {  # what a name's ending says; ComfyUI's, optimum-quanto's, LightX2V's
    ".weight._data": VALUES,
    ".weight._scale": SCALE,
    ".weight_scale_2": OUTER_SCALE,
    ".weight_scale": SCALE,
    ".scale_weight": SCALE,
    ".comfy_quant": FORMAT,
    ".pre_quant_scale": SCALE_OF_INPUTS,
    ".scale_input": UNUSED,  # scales of activations, which are not quantised here
    ".input_scale": UNUSED,
    ".output_scale": UNUSED,
}
MARKER = "scaled_fp8"  # ComfyUI's sign that 8-bit weights have scales
ROTATION_SIZE = 256  # ConvRot's, where a file names no other
PLAIN = ("F64", "F32", "F16", "BF16")
EIGHT_BIT = ("F8_E4M3", "F8_E5M2", "I8")


@dataclass
class Stored:
    """A weight as a source holds it.

    Attributes:
        source: where.
        keys: the tensors by role: values, and scales where there are some.
        format: what ComfyUI's files say of the layer beside its numbers.
    """

    source: Source
    keys: dict[str, str] = field(default_factory=dict)
    format: Mapping[str, Any] = field(default_factory=dict)

    @property
    def entry(self) -> Entry:
        """The values' header."""
        return self.source.entries[self.keys[VALUES]]

    @property
    def shape(self) -> tuple[int, ...]:
        """As the network sees it."""
        rows_columns = self.entry.shape
        return (rows_columns[0], 2 * rows_columns[1]) if self.is_nvfp4 else rows_columns

    @property
    def dtype(self) -> torch.dtype:
        """Of the values; bytes where they are in blocks."""
        return DTYPES.get(self.entry.dtype, torch.uint8)

    @property
    def is_plain(self) -> bool:
        """Whether it is stored as floating point numbers of 16 or more bits."""
        return self.entry.dtype in PLAIN and SCALE not in self.keys

    @property
    def packing(self) -> str:
        """How it is stored, for people: "fp8 e4m3 scaled per tensor", "Q4_K"."""
        kind = self.entry.dtype
        if self.is_nvfp4:
            return "nvfp4"
        if self.is_mxfp8:
            return "mxfp8"
        name = {"F8_E4M3": "fp8 e4m3", "F8_E5M2": "fp8 e5m2", "I8": "int8"}.get(kind, kind.lower())
        if kind in BLOCKS:
            return kind
        if SCALE not in self.keys:
            return name
        per = "row" if self._num_scales > 1 else "tensor"
        return f"{name} scaled per {per}" + (", ConvRot" if self.format.get("convrot") else "")

    def tensor(self, dtype: torch.dtype) -> Tensor:
        """The numbers in `dtype`; those of the file, mapped, where they already are."""
        values = self.source.get(self.keys[VALUES])
        if self.is_plain:
            return values.to(dtype)
        if values.ndim < 2:
            return self.packed_of(values.reshape(1, -1)).decode(dtype).reshape(self.shape)
        return self.packed_of(values.flatten(1)).decode(dtype).reshape(self.shape)

    def packed(self) -> Packed:
        """The matrix as it is stored."""
        return self.packed_of(self.source.get(self.keys[VALUES]))

    def packed_of(self, values: Tensor) -> Packed:
        """`values`, the stored ones as rows, with their scales and their encoding."""
        return Packed(to_bytes(values), self._encoding(), self._scale(), self._outer_scale())

    def _scale(self) -> Tensor | None:
        if SCALE not in self.keys:
            return None
        scale = self.source.get(self.keys[SCALE])
        return to_bytes(scale if self.is_nvfp4 or self.is_mxfp8 else scale.float().reshape(-1, 1))

    def _outer_scale(self) -> Tensor | None:
        return to_bytes(self.source.get(self.keys[OUTER_SCALE]).float()) if OUTER_SCALE in self.keys else None

    def _encoding(self) -> Encoding:
        if self.entry.dtype in BLOCKS:
            return Blocks(self.entry.dtype)
        if self.is_nvfp4:
            return Nvfp4()
        if self.is_mxfp8:
            return Mxfp8()
        rotation = self.format.get("convrot_groupsize", ROTATION_SIZE) if self.format.get("convrot") else 0
        return Numbers(DTYPES[self.entry.dtype], rotation)

    @property
    def is_nvfp4(self) -> bool:
        """Whether it is in NVIDIA's 4-bit format."""
        return self.entry.dtype == "U8" and OUTER_SCALE in self.keys

    @property
    def is_mxfp8(self) -> bool:
        """Whether it is in 8 bits with powers of two as scales."""
        scale = self.source.entries[self.keys[SCALE]] if SCALE in self.keys else None
        return scale is not None and scale.dtype in ("U8", "F8_E8M0")

    @property
    def is_scaled_by_rows(self) -> bool:
        """Whether it has one scale, or one for each row."""
        shape, rows = self.source.entries[self.keys[SCALE]].shape, self.entry.shape[0] if self.entry.shape else 1
        return prod(shape) == 1 or (shape[0] == rows == prod(shape))

    @property
    def _num_scales(self) -> int:
        return prod(self.source.entries[self.keys[SCALE]].shape)


def collect(source: Source, rename: Callable[[str], str | None]) -> dict[str, Stored]:
    """All weights of `source` that `rename` knows, by our names.

    Raises:
        WeightsError: values without the scales they need, scales without values, or a format that cannot be read here.
    """
    weights: dict[str, Stored] = {}
    formats = _formats_in_headers(source)
    told = {rename(f"{layer}.weight"): layer for layer in formats}
    for key in source.entries:
        path, role = _split(key)
        ours = rename(f"{path}.weight" if role != VALUES or path != key else key)
        if ours is None or role == UNUSED:
            continue
        stored = weights.setdefault(ours, Stored(source))
        if role == FORMAT:
            stored.format = _format(source, key)
        else:
            stored.keys[role] = key
            stored.format = stored.format or formats.get(told.get(ours), {})
    lost = formats.keys() - {told.get(ours) for ours in weights}
    if lost and any(SCALE in stored.keys and not stored.format for stored in weights.values()):
        raise WeightsError(_damaged(source, "formats of layers that it does not have", ", ".join(sorted(lost)[:3])))
    _check(source, weights)
    return weights


def _split(key: str) -> tuple[str, str]:
    for ending, role in ROLES.items():
        if key.endswith(ending):
            return key[: -len(ending)], role
    return key, VALUES


def _formats_in_headers(source: Source) -> Mapping[str, Mapping[str, Any]]:
    """What ComfyUI's files may say of layers in their headers instead of in tensors, under any of a layer's names."""
    formats: dict[str, Mapping[str, Any]] = {}
    for header in source.headers:
        try:
            layers = parse_object(header.get("_quantization_metadata") or "{}").get("layers", {})
            formats |= {name: dict(form) for name, form in layers.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise WeightsError(_damaged(source, "formats that cannot be read", "_quantization_metadata")) from error
    return formats


def _format(source: Source, key: str) -> Mapping[str, Any]:
    """What a layer's own tensor of text says."""
    try:
        return parse_object(bytes(source.get(key).flatten().tolist()))
    except (ValueError, TypeError) as error:
        raise WeightsError(_damaged(source, "a format that cannot be read", key)) from error


def _check(source: Source, weights: Mapping[str, Stored]) -> None:
    marked = any(key.endswith(MARKER) for key in source.entries)
    for name, stored in weights.items():
        if VALUES not in stored.keys:
            raise WeightsError(_damaged(source, "a scale without its weight", name))
        kind, is_matrix, is_scaled = stored.entry.dtype, len(stored.entry.shape) == 2, SCALE in stored.keys
        if is_matrix and not is_scaled and (kind == "I8" or (marked and kind in EIGHT_BIT)):
            raise WeightsError(_damaged(source, "an 8-bit weight without its scale", name))
        if is_scaled and kind not in (*EIGHT_BIT, "U8"):
            raise WeightsError(_damaged(source, "a scale for a weight that is not 8-bit", name))
        if is_scaled and kind in EIGHT_BIT and not stored.is_mxfp8 and not stored.is_scaled_by_rows:
            raise WeightsError(
                f"{source.name} stores {name} with scales of {_sides(source.entries[stored.keys[SCALE]])} for "
                f"{_sides(stored.entry)} numbers, which is not supported: one scale, or one for each row, is; use "
                f"fp8_scaled or GGUF."
            )
        if SCALE_OF_INPUTS in stored.keys:
            raise WeightsError(
                f"{source.name} stores {name} as {stored.packing} with {SCALE_OF_INPUTS}, which is not supported; use "
                f"fp8_scaled or GGUF."
            )
        if stored.is_nvfp4 or stored.is_mxfp8:
            comfy_kitchen(stored.packing)
        elif kind not in BLOCKS and kind not in PLAIN and kind not in EIGHT_BIT:
            form = stored.format.get("format", kind)
            raise WeightsError(
                f"{source.name} stores {name} as {form}, which is not supported; use fp8_scaled or GGUF."
            )


def _sides(entry: Entry) -> str:
    return " x ".join(map(str, entry.shape))


def _damaged(source: Source, what: str, name: str) -> str:
    return (
        f"{source.name} is damaged or half-converted: it has {what} ({name}); "
        f"download it again or use another packaging."
    )
