"""The tensors of a source that make up each weight of ours: values, their scales, and the way they are packed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..errors import WeightsError
from .gguf import BLOCKS, Blocks
from .headers import parse_object
from .quantization import Encoding, Mxfp8, Numbers, Nvfp4, PackedMatrix, comfy_kitchen, to_bytes
from .source import DTYPES, Entry, Source, readable_shape

VALUES, SCALE, OUTER_SCALE, FORMAT, UNUSED = "values", "scale", "outer_scale", "format", "unused"
SCALE_OF_INPUTS = "pre_quant_scale"
ROLES = {  # by the ending of a name; ComfyUI's, optimum-quanto's, LightX2V's
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
FOREIGN_PACKINGS = {  # by the ending of a name that no other packing has
    ".SCB": "bitsandbytes' int8",
    ".absmax": "bitsandbytes' 4 bits",
    ".wscales": "Nunchaku's 4 bits",
    ".qzeros": "GPTQ or AWQ",
    ".W_q": "HQQ",
    ".weight_scale_inv": "fp8 with a scale for each square",
}
MARKER = "scaled_fp8"  # ComfyUI's sign that 8-bit weights have scales
FORMAT_BYTES = 2**16  # of the text about a layer; real ones have 100
ROTATION_SIZE = 256  # ConvRot's, where a file names no other
ROTATION_SIZES = (4, 16, 64, 256, 1024)
PLAIN = ("F64", "F32", "F16", "BF16")
EIGHT_BIT = ("F8_E4M3", "F8_E5M2", "I8")


@dataclass
class StoredWeight:
    """A weight as a source holds it.

    Attributes:
        source: the file or files.
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
        """The shape as the network sees it."""
        shape = self.entry.shape
        return (shape[0], 2 * shape[1]) if self.is_nvfp4 else shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the values; bytes where they are in blocks."""
        return DTYPES.get(self.entry.dtype, torch.uint8)

    @property
    def is_plain(self) -> bool:
        """True for floating point numbers of 16 or more bits."""
        return self.entry.dtype in PLAIN and SCALE not in self.keys

    @property
    def is_nvfp4(self) -> bool:
        """True for NVIDIA's 4-bit format."""
        return self.entry.dtype == "U8" and OUTER_SCALE in self.keys and len(self.entry.shape) == 2

    @property
    def is_mxfp8(self) -> bool:
        """True for 8 bits with powers of two as scales."""
        scale = self.scale_entry
        return self.entry.dtype == "F8_E4M3" and scale is not None and scale.dtype in ("U8", "F8_E8M0")

    @property
    def scale_entry(self) -> Entry | None:
        """The scales' header."""
        return self.source.entries[self.keys[SCALE]] if SCALE in self.keys else None

    @property
    def packing(self) -> str:
        """The way it is stored, for people: "fp8 e4m3 scaled per tensor", "Q4_K"."""
        kind = self.entry.dtype
        if self.is_nvfp4:
            return "nvfp4"
        if self.is_mxfp8:
            return "mxfp8"
        name = {"F8_E4M3": "fp8 e4m3", "F8_E5M2": "fp8 e5m2", "I8": "int8"}.get(kind, kind.lower())
        if kind in BLOCKS:
            return kind
        if self.scale_entry is None:
            return name
        per = "row" if prod(self.scale_entry.shape) > 1 else "tensor"
        return f"{name} scaled per {per}" + (", ConvRot" if self.rotation else "")

    @property
    def rotation(self) -> Any:
        """Columns that ConvRot rotated together, as the file states them; 0 without it."""
        return self.format.get("convrot_groupsize", ROTATION_SIZE) if self.format.get("convrot") else 0

    def tensor(self, dtype: torch.dtype) -> Tensor:
        """The numbers in `dtype`; those of the file, mapped, where they already are."""
        values = self.source.get(self.keys[VALUES])
        if self.is_plain:
            return values.to(dtype)
        rows = values.reshape(1, -1) if values.ndim < 2 else values.flatten(1)
        return self._packed(rows).decode(dtype).reshape(self.shape)

    def packed(self) -> PackedMatrix:
        """The matrix as it is stored."""
        return self._packed(self.source.get(self.keys[VALUES]))

    def _packed(self, rows: Tensor) -> PackedMatrix:
        return PackedMatrix(to_bytes(rows), self._encoding(), self._scale(), self._outer_scale())

    def _scale(self) -> Tensor | None:
        if SCALE not in self.keys:
            return None
        scale = self.source.get(self.keys[SCALE])
        return to_bytes(scale if self.is_nvfp4 or self.is_mxfp8 else scale.float().reshape(-1, 1))

    def _outer_scale(self) -> Tensor | None:
        return to_bytes(self.source.get(self.keys[OUTER_SCALE]).float()) if OUTER_SCALE in self.keys else None

    def _encoding(self) -> Encoding:
        if self.entry.dtype in BLOCKS:
            return Blocks.of(self.entry.dtype)
        if self.is_nvfp4:
            return Nvfp4()
        if self.is_mxfp8:
            return Mxfp8()
        return Numbers(DTYPES[self.entry.dtype], self.rotation)


def collect(source: Source, rename: Callable[[str], str | None]) -> dict[str, StoredWeight]:
    """All weights of `source` that `rename` has a name for, by our names.

    Raises:
        WeightsError: values without the scales they need, scales without values, or a format that cannot be read here.
    """
    _refuse_foreign_packing(source)
    weights: dict[str, StoredWeight] = {}
    formats = _formats_in_headers(source)
    layers = {rename(f"{layer}.weight"): layer for layer in formats}
    for key in source.entries:
        path, role = _split(key)
        name = rename(f"{path}.weight" if role != VALUES or path != key else key)
        if name is None or role == UNUSED:
            continue
        weight = weights.setdefault(name, StoredWeight(source))
        if role == FORMAT:
            weight.format = _format(source, key)
        else:
            weight.keys[role] = key
            weight.format = weight.format or formats.get(layers.get(name, ""), {})
    absent = formats.keys() - {layers.get(name) for name in weights}
    if absent and any(SCALE in weight.keys and not weight.format for weight in weights.values()):
        raise WeightsError(_damaged(source, "formats of layers that it does not have", ", ".join(sorted(absent)[:3])))
    _check(source, weights)
    return weights


def _split(key: str) -> tuple[str, str]:
    for ending, role in ROLES.items():
        if key.endswith(ending):
            return key[: -len(ending)], role
    return key, VALUES


def _refuse_foreign_packing(source: Source) -> None:
    for ending, packing in FOREIGN_PACKINGS.items():
        if any(key.endswith(ending) for key in source.entries):
            raise WeightsError(
                f"{source.name} is packed as {packing}, which is not supported; use fp8_scaled, quanto's int8 or GGUF."
            )


def _formats_in_headers(source: Source) -> Mapping[str, Mapping[str, Any]]:
    """The formats that ComfyUI's files may state in their headers instead of in tensors, by any name of a layer."""
    formats: dict[str, Mapping[str, Any]] = {}
    for header in source.headers:
        try:
            layers = parse_object(header.get("_quantization_metadata") or "{}").get("layers", {})
            formats |= {name: dict(form) for name, form in layers.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise WeightsError(_damaged(source, "formats that cannot be read", "_quantization_metadata")) from error
    return formats


def _format(source: Source, key: str) -> Mapping[str, Any]:
    """The format that a layer's own tensor of text states."""
    try:
        if source.entries[key].num_bytes > FORMAT_BYTES:
            raise ValueError("a long text")
        return parse_object(bytes(source.get(key).flatten().tolist()))
    except (ValueError, TypeError) as error:
        raise WeightsError(_damaged(source, "a format that cannot be read", key)) from error


def _check(source: Source, weights: Mapping[str, StoredWeight]) -> None:
    is_marked = any(key.endswith(MARKER) for key in source.entries)
    for name, weight in weights.items():
        if VALUES not in weight.keys:
            raise WeightsError(_damaged(source, "a scale without its weight", name))
        kind, is_matrix, scale = weight.entry.dtype, len(weight.entry.shape) == 2, weight.scale_entry
        if is_matrix and scale is None and (kind == "I8" or (is_marked and kind in EIGHT_BIT)):
            raise WeightsError(_damaged(source, "an 8-bit weight without its scale", name))
        if weight.is_nvfp4 and scale is None:
            raise WeightsError(_damaged(source, "a 4-bit weight without its scales", name))
        if scale is not None and kind not in (*EIGHT_BIT, "U8"):
            raise WeightsError(_damaged(source, "a scale for a weight that is not 8-bit", name))
        if scale is not None and kind in EIGHT_BIT and not weight.is_mxfp8 and not _has_row_scales(weight, scale):
            raise WeightsError(
                f"{source.name} stores {name} with scales of {readable_shape(scale.shape)} for "
                f"{readable_shape(weight.entry.shape)} numbers, which is not supported: one scale, or one for each "
                f"row, is; use fp8_scaled or GGUF."
            )
        if weight.rotation and not _can_rotate(weight):
            raise WeightsError(_damaged(source, f"groups of {weight.rotation!r} rotated columns", name))
        if SCALE_OF_INPUTS in weight.keys:
            raise WeightsError(
                f"{source.name} stores {name} as {weight.packing} with {SCALE_OF_INPUTS}, which is not supported; use "
                f"fp8_scaled or GGUF."
            )
        if weight.is_nvfp4 or weight.is_mxfp8:
            comfy_kitchen(weight.packing)
        elif kind not in BLOCKS and kind not in PLAIN and kind not in EIGHT_BIT:
            form = weight.format.get("format", kind)
            raise WeightsError(
                f"{source.name} stores {name} as {form}, which is not supported; use fp8_scaled or GGUF."
            )


def _has_row_scales(weight: StoredWeight, scale: Entry) -> bool:
    """True for one scale, or one for each row."""
    rows = weight.entry.shape[0] if weight.entry.shape else 1
    return prod(scale.shape) == 1 or (scale.shape[0] == rows == prod(scale.shape))


def _can_rotate(weight: StoredWeight) -> bool:
    return weight.rotation in ROTATION_SIZES and prod(weight.entry.shape[1:]) % weight.rotation == 0


def _damaged(source: Source, fault: str, name: str) -> str:
    return (
        f"{source.name} is damaged or half-converted: it has {fault} ({name}); "
        f"download it again or use another packaging."
    )
