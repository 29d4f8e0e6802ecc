"""Files of random weights of any size, written tensor by tensor, so that they take disk and no memory."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

Shapes = Mapping[str, tuple[int, ...]]

SAFETENSORS = {"fp16": ("F16", np.float16), "fp8": ("F8_E4M3", np.uint8)}
GGUF = {kind.name: kind for kind in (gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_K)}
# The halves that begin a block (Q8_0: scale; Q4_K: scale, scale of the minima), such that numbers are about 0.02.
BLOCK_HALVES = {"Q8_0": (2e-4,), "Q4_K": (1e-4, 7.5e-4)}
NUM_RANDOM = 1 << 20  # numbers that are drawn; larger tensors repeat them


def write_safetensors(path: Path, shapes: Shapes, packaging: str) -> Path:
    """A file of block matrices in `packaging`, "fp16" or "fp8", and the rest in fp16."""
    header, parts, end = {}, [], 0
    for key, shape in shapes.items():
        name, kind = SAFETENSORS[packaging if _is_block_matrix(key, shape) else "fp16"]
        start, end = end, end + math.prod(shape) * np.dtype(kind).itemsize
        header[key] = {"dtype": name, "shape": shape, "data_offsets": (start, end)}
        parts.append((kind, math.prod(shape)))
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    numbers = {kind: _numbers(kind) for _, kind in SAFETENSORS.values()}
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for kind, count in parts:
            for start in range(0, count, NUM_RANDOM):
                numbers[kind][: count - start].tofile(file)
    return path


def write_gguf(path: Path, shapes: Shapes, packaging: str) -> Path:
    """A file of block matrices in `packaging`, "Q8_0" or "Q4_K", other matrices in F16, vectors in F32."""
    writer = gguf.GGUFWriter(path, "wan")
    blocks = _blocks(packaging)
    arrays = {
        key: np.broadcast_to(np.uint8(), (shape[0], shape[1] // _block_values(packaging) * blocks.shape[1]))
        if _is_block_matrix(key, shape)
        else np.broadcast_to(np.float16() if len(shape) > 1 else np.float32(), shape)
        for key, shape in shapes.items()
    }
    for key, array in arrays.items():
        kind = GGUF[packaging] if array.dtype == np.uint8 else None
        writer.add_tensor_info(key, array.shape, array.dtype, array.nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for array in arrays.values():
        drawn = blocks if array.dtype == np.uint8 else _numbers(array.dtype.type)
        writer.write_tensor_data(np.resize(drawn, array.shape))
    writer.close()
    return path


def _is_block_matrix(key: str, shape: tuple[int, ...]) -> bool:
    """A large matrix of a block, which quantisers pack; of umT5 not its small table of positions."""
    return (
        key.startswith(("blocks.", "encoder.block.")) and key.endswith("weight") and len(shape) == 2 and shape[1] > 64
    )


def _numbers(kind: type) -> np.ndarray:
    """Small random numbers; as bytes, those of fp8 e4m3 below 0.06."""
    random = np.random.default_rng(0)
    if kind is np.uint8:
        sign = random.choice(np.array([0, 128], np.uint8), NUM_RANDOM)
        return random.integers(0, 32, NUM_RANDOM, dtype=np.uint8) | sign
    return (0.02 * random.standard_normal(NUM_RANDOM)).astype(kind)


def _block_values(packaging: str) -> int:
    return gguf.GGML_QUANT_SIZES[GGUF[packaging]][0]


def _blocks(packaging: str) -> np.ndarray:
    """Random blocks of a GGUF type, `blocks bytes`."""
    values, num_bytes = gguf.GGML_QUANT_SIZES[GGUF[packaging]]
    count, halves = NUM_RANDOM // values, np.array(BLOCK_HALVES[packaging], np.float16).view(np.uint8)
    blocks = np.random.default_rng(0).integers(0, 256, (count, num_bytes), dtype=np.uint8)
    blocks[:, : len(halves)] = halves
    return blocks
