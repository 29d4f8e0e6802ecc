"""Opening of random weights at the published width, by our loader and by diffusers' `from_single_file`."""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import GGUFQuantizationConfig, WanTransformer3DModel
from torch import nn

from pipeline.weights.build import load_transformer

from .measure import PrivatePeak, Settings
from .report import Row
from .streamed_weights import SAFETENSORS, write_gguf, write_safetensors
from .tiny_weights import PUBLISHED, WeightSizes, adapter_shapes, transformer_shapes

SIZES = {"smoke": WeightSizes(width=256, layers=2, ffn=512), "published": replace(PUBLISHED, layers=3)}
PACKAGINGS = (*SAFETENSORS, "GGUF")
GOAL_MB = 500  # of private memory, for 3 to 4 GB in fp16
PAGE = 4096

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


def write(folder: Path, sizes: WeightSizes, packaging: str) -> tuple[Path, Path]:
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
        path = write_gguf(folder / "wan2.1_i2v.gguf", base, "Q8_0")
        return path, write_safetensors(folder / "multitalk.safetensors", audio, "fp16")
    path = write_safetensors(folder / "wan2.1_i2v.safetensors", base, packaging)
    return path, write_safetensors(folder / "multitalk.safetensors", audio, packaging)


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
