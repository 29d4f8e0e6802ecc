"""The values of GGUF blocks, against those of ggml's own reader; the package is needed for GGUF files alone."""

import sys

import gguf
import numpy as np
import pytest
import torch
from multitalk_pack.pipeline.errors import WeightsError
from multitalk_pack.pipeline.weights.build import load_transformer
from multitalk_pack.pipeline.weights.checkpoint import open_file
from multitalk_pack.pipeline.weights.gguf import BLOCKS, Blocks
from support.packagings import E4M3, gguf_file, scaled
from support.tiny_models import adapter_state, base_state

HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2),
          "Q6_K": (208,)}  # fmt: skip


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_have_the_values_of_ggmls_own_reader(kind):
    random = np.random.default_rng(len(kind))
    number = gguf.GGMLQuantizationType[kind]
    size = gguf.GGML_QUANT_SIZES[number][1]
    blocks = random.integers(0, 256, (40, size), dtype=np.uint8)
    for start in HALVES.get(kind, (0,)):  # scales: any bytes would make infinities
        blocks[:, start : start + 2] = random.normal(size=(40, 1)).astype(np.float16).view(np.uint8)
    rows = blocks.reshape(8, -1)
    decoded = Blocks.of(kind).decode(torch.from_numpy(rows), None, None, torch.float32)
    assert torch.equal(decoded, torch.from_numpy(gguf.quants.dequantize(rows, number)))


def test_without_its_package_a_gguf_is_refused_and_all_else_loads(tmp_path, monkeypatch):
    (tmp_path / "gguf").mkdir()
    packed, _, _ = gguf_file("Q8_0")(base_state(), adapter_state(), tmp_path / "gguf")
    base, adapter, _ = scaled(E4M3, False, ".weight", ".scale_weight", True)(base_state(), adapter_state(), tmp_path)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(WeightsError, match="GGUF files need the package gguf: pip install gguf"):
        open_file(packed)
    assert load_transformer(base, adapter).config.num_layers == 2
