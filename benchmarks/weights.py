"""Opening of random weights at the published width, by our loader and by diffusers' `from_single_file`."""

from __future__ import annotations

import json
import math
import multiprocessing
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import gguf
import numpy as np
import torch
from diffusers import GGUFQuantizationConfig, WanTransformer3DModel
from torch import nn

from pipeline.weights.build import load_transformer

from .measure import PrivatePeak, Settings
from .report import Row
from .tiny_weights import TinySizes, adapter_shapes, transformer_shapes

PUBLISHED = {"width": 5120, "ffn": 13824, "text_width": 4096, "image_width": 1280, "speech_width": 768,
             "speech_layers": 12, "audio_hidden": 512, "audio_width": 768, "audio_tokens": 32}  # fmt: skip
SIZES = {"smoke": TinySizes(width=256, layers=2, ffn=512), "published": TinySizes(layers=3, **PUBLISHED)}
SAFETENSORS = {"fp16": ("F16", np.float16), "fp8": ("F8_E4M3", np.uint8)}
GGUF_TYPE = gguf.GGMLQuantizationType.Q8_0
PACKAGINGS = (*SAFETENSORS, "GGUF")
GOAL_MB = 500  # of private memory, for 3 to 4 GB in fp16
PAGE = 4096
NUM_RANDOM = 1 << 20  # numbers that are drawn; larger tensors repeat them

Shapes = Mapping[str, tuple[int, ...]]
Loader = Callable[[Path, Path], nn.Module]
Stages = dict[str, tuple[float, float]]
"""Seconds and private MB since the start, by stage."""


def run(settings: Settings) -> Iterator[Row]:
    """Rows of each packaging: opened, and every page touched once, as the first forward does."""
    with ExitStack() as stack:
        openers = [stack.enter_context(_Opener(load, settings)) for load in (_load_by_diffusers, load_transformer)]
        for name in settings.sizes or ("published",):
            for packaging in PACKAGINGS:
                yield from _compare(*openers, name, packaging)


def _compare(baseline: _Opener, ours: _Opener, name: str, packaging: str) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        files = write(Path(folder), SIZES[name], packaging)
        size = f"{packaging}, {sum(file.stat().st_size for file in files) / 1e9:.2f} GB"
        baseline_stages, stages = baseline.open(*files), ours.open(*files)
    for stage in stages:
        yield {
            "case": f"{size}: {stage}",
            "against": "from_single_file of diffusers",
            "seconds": baseline_stages[stage][0],
            "ours, s": stages[stage][0],
            "speed-up": baseline_stages[stage][0] / stages[stage][0],
            "relative error": None,
            "private MB": baseline_stages[stage][1],
            "ours, private MB": stages[stage][1],
            "goal, private MB": GOAL_MB if packaging == "fp16" and name == "published" else None,
        }


def write(folder: Path, sizes: TinySizes, packaging: str) -> tuple[Path, Path]:
    """Files of a base and its adapter in `packaging` (that of a GGUF in fp16), with diffusers' configuration."""
    base, audio = dict(transformer_shapes(sizes)), dict(adapter_shapes(sizes))
    config = {
        "_class_name": "WanTransformer3DModel",
        "num_attention_heads": sizes.width // 128,
        "in_channels": 36,
        "text_dim": sizes.text_width,
        "freq_dim": sizes.frequencies,
        "ffn_dim": sizes.ffn,
        "num_layers": sizes.layers,
        "image_dim": sizes.image_width,
        "added_kv_proj_dim": sizes.width,
    }
    (folder / "config.json").write_text(json.dumps(config))
    if packaging == "GGUF":
        path = _write_gguf(folder / "wan2.1_i2v.gguf", base)
        return path, _write_safetensors(folder / "multitalk.safetensors", audio, "fp16")
    path = _write_safetensors(folder / "wan2.1_i2v.safetensors", base, packaging)
    return path, _write_safetensors(folder / "multitalk.safetensors", audio, packaging)


def _write_safetensors(path: Path, shapes: Shapes, packaging: str) -> Path:
    """File of block matrices in `packaging` and the rest in fp16, one tensor after the other to save memory."""
    header, parts, end = {}, [], 0
    for key, shape in shapes.items():
        name, kind = SAFETENSORS[packaging if _is_block_matrix(key, shape) else "fp16"]
        start, end = end, end + math.prod(shape) * np.dtype(kind).itemsize
        header[key] = {"dtype": name, "shape": shape, "data_offsets": (start, end)}
        parts.append((kind, math.prod(shape)))
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for kind, count in parts:
            _numbers(kind, count).tofile(file)
    return path


def _write_gguf(path: Path, shapes: Shapes) -> Path:
    """File of block matrices in Q8_0, other matrices in F16, vectors in F32."""
    writer = gguf.GGUFWriter(path, "wan")
    for key, shape in shapes.items():
        if _is_block_matrix(key, shape):
            writer.add_tensor(key, _q8_blocks(shape), raw_dtype=GGUF_TYPE)
        else:
            kind = np.float16 if len(shape) > 1 else np.float32
            writer.add_tensor(key, _numbers(kind, math.prod(shape)).reshape(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _is_block_matrix(key: str, shape: tuple[int, ...]) -> bool:
    return key.startswith("blocks.") and key.endswith("weight") and len(shape) == 2


def _numbers(kind: type, count: int) -> np.ndarray:
    """Small random numbers; as bytes, those of fp8 e4m3 below 0.06."""
    random = np.random.default_rng(0)
    if kind is np.uint8:
        numbers = random.integers(0, 32, NUM_RANDOM, dtype=np.uint8) | random.choice(
            np.array([0, 128], np.uint8), NUM_RANDOM
        )
    else:
        numbers = (0.02 * random.standard_normal(NUM_RANDOM)).astype(kind)
    return np.resize(numbers, count)


def _q8_blocks(shape: tuple[int, ...]) -> np.ndarray:
    """Rows of Q8_0 blocks: a scale in fp16, 32 numbers."""
    scales = np.full((NUM_RANDOM // 32, 1), 2e-4, np.float16).view(np.uint8)
    values = np.random.default_rng(0).integers(0, 256, (NUM_RANDOM // 32, 32), dtype=np.uint8)
    blocks = np.concatenate((scales, values), axis=1)
    return np.resize(blocks, (shape[0], shape[1] // 32 * blocks.shape[1]))


class _Opener:
    """Process of its own in which a loader opens files, a small one first."""

    def __init__(self, load: Loader, settings: Settings):
        self._load, self._threads = load, settings.threads

    def __enter__(self) -> _Opener:
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        with tempfile.TemporaryDirectory() as folder:
            self.open(*write(Path(folder), SIZES["smoke"], "fp16"))
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def open(self, base: Path, adapter: Path) -> Stages:
        """Figures of opening them."""
        return self._pool.submit(_measure, self._load, base, adapter, self._threads).result()


def _measure(load: Loader, base: Path, adapter: Path, threads: int) -> Stages:
    torch.set_num_threads(threads)
    start_s, stages = time.perf_counter(), {}
    with PrivatePeak() as peak:
        model = load(base, adapter)
    stages["opened"] = time.perf_counter() - start_s, peak.megabytes()
    with torch.inference_mode(), PrivatePeak() as more:
        _touch(model)
    stages["every page touched"] = time.perf_counter() - start_s, peak.megabytes() + more.megabytes()
    return stages


def _load_by_diffusers(base: Path, _adapter: Path) -> nn.Module:
    """Base alone, as diffusers has no place for the audio weights."""
    options = {"quantization_config": GGUFQuantizationConfig(torch.bfloat16)} if base.suffix == ".gguf" else {}
    return WanTransformer3DModel.from_single_file(
        str(base), config=str(base.parent), torch_dtype=torch.bfloat16, local_files_only=True, **options
    )


def _touch(model: nn.Module) -> None:
    """Reads a byte of each page of the weights."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.as_subclass(torch.Tensor).contiguous().flatten().view(torch.uint8)[::PAGE].sum()
