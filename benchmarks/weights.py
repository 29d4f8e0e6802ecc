"""Opening weights: random numbers at the published width, by our loader and by diffusers' `from_single_file`."""

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
Way = Callable[[Path, Path], nn.Module]
Told = dict[str, tuple[float, float]]  # seconds and private MB since the start, by stage


def run(settings: Settings) -> Iterator[Row]:
    """Each packaging: opened, and opened with every page touched once, as the first forward does."""
    with ExitStack() as stack:
        theirs, ours = (stack.enter_context(_Opener(way, settings)) for way in (_theirs, _ours))
        for name in settings.sizes or ("published",):
            for packaging in PACKAGINGS:
                yield from _compare(theirs, ours, name, packaging)


def _compare(theirs: _Opener, ours: _Opener, name: str, packaging: str) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        files = write(Path(folder), SIZES[name], packaging)
        size = f"{packaging}, {sum(file.stat().st_size for file in files) / 1e9:.2f} GB"
        other, own = theirs.open(*files), ours.open(*files)
    for stage in own:
        yield {
            "case": f"{size}: {stage}",
            "against": "from_single_file of diffusers",
            "seconds": other[stage][0],
            "ours, s": own[stage][0],
            "speed-up": other[stage][0] / own[stage][0],
            "relative error": None,
            "private MB": other[stage][1],
            "ours, private MB": own[stage][1],
            "goal, private MB": GOAL_MB if packaging == "fp16" and name == "published" else None,
        }


def write(folder: Path, sizes: TinySizes, packaging: str) -> tuple[Path, Path]:
    """A base and its adapter in `packaging`, the adapter of a GGUF in fp16; diffusers' configuration beside them."""
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
    """Block matrices in `packaging`, the rest in fp16, one tensor after the other: memory stays small."""
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
    """Block matrices in Q8_0, other matrices F16, vectors F32."""
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
        drawn = random.integers(0, 32, NUM_RANDOM, dtype=np.uint8) | random.choice(
            np.array([0, 128], np.uint8), NUM_RANDOM
        )
    else:
        drawn = (0.02 * random.standard_normal(NUM_RANDOM)).astype(kind)
    return np.resize(drawn, count)


def _q8_blocks(shape: tuple[int, ...]) -> np.ndarray:
    """Rows of Q8_0 blocks: a scale in fp16, 32 numbers."""
    scales = np.full((NUM_RANDOM // 32, 1), 2e-4, np.float16).view(np.uint8)
    values = np.random.default_rng(0).integers(0, 256, (NUM_RANDOM // 32, 32), dtype=np.uint8)
    blocks = np.concatenate((scales, values), axis=1)
    return np.resize(blocks, (shape[0], shape[1] // 32 * blocks.shape[1]))


class _Opener:
    """A process of its own in which one way opens files, a small one first."""

    def __init__(self, way: Way, settings: Settings):
        self._way, self._threads = way, settings.threads

    def __enter__(self) -> _Opener:
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        with tempfile.TemporaryDirectory() as folder:
            self.open(*write(Path(folder), SIZES["smoke"], "fp16"))
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def open(self, base: Path, adapter: Path) -> Told:
        """What opening them takes."""
        return self._pool.submit(_measured, self._way, base, adapter, self._threads).result()


def _measured(way: Way, base: Path, adapter: Path, threads: int) -> Told:
    """Opens, then touches."""
    torch.set_num_threads(threads)
    started, told = time.perf_counter(), {}
    with PrivatePeak() as peak:
        model = way(base, adapter)
    told["opened"] = time.perf_counter() - started, peak.megabytes()
    with torch.inference_mode(), PrivatePeak() as more:
        _touch(model)
    told["every page touched"] = time.perf_counter() - started, peak.megabytes() + more.megabytes()
    return told


def _ours(base: Path, adapter: Path) -> nn.Module:
    return load_transformer(base, adapter)


def _theirs(base: Path, _adapter: Path) -> nn.Module:
    """The base alone, as diffusers has no place for the audio weights."""
    packed = {"quantization_config": GGUFQuantizationConfig(torch.bfloat16)} if base.suffix == ".gguf" else {}
    return WanTransformer3DModel.from_single_file(
        str(base), config=str(base.parent), torch_dtype=torch.bfloat16, local_files_only=True, **packed
    )


def _touch(model: nn.Module) -> None:
    """Reads a byte of each page of the weights."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.as_subclass(torch.Tensor).contiguous().flatten().view(torch.uint8)[::PAGE].sum()
