import gguf
import numpy as np
import pytest
import torch
from multitalk_pack.pipeline.weights.gguf import BLOCKS, dequantize

HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2),
          "Q6_K": (208,)}  # fmt: skip


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_are_worth_what_ggmls_own_reader_says(kind):
    random = np.random.default_rng(len(kind))
    number = gguf.GGMLQuantizationType[kind]
    size = gguf.GGML_QUANT_SIZES[number][1]
    blocks = random.integers(0, 256, (40, size), dtype=np.uint8)
    for start in HALVES.get(kind, (0,)):  # scales: any bytes would make infinities
        blocks[:, start : start + 2] = random.normal(size=(40, 1)).astype(np.float16).view(np.uint8)
    rows = blocks.reshape(8, -1)
    assert torch.equal(dequantize(torch.from_numpy(rows), kind), torch.from_numpy(gguf.quants.dequantize(rows, number)))
