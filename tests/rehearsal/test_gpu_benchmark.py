"""The benchmark of a card, run on a fake one: every path that only a card has is gone once."""

import torch

from benchmarks import gpu
from benchmarks.measure import Settings
from benchmarks.rehearsal.fake_card import FakeCard
from pipeline.acceleration import attention_kernels, compilation, fp8_products


def test_every_part_runs_on_a_card():
    probes = (attention_kernels.find_kernel, compilation.compiler_failure, fp8_products.find_product)
    settings = Settings(torch.device("cuda"), torch.bfloat16, rounds=1, sizes=("smoke",))
    for probe in probes:
        probe.cache_clear()
    try:
        with FakeCard() as card:
            rows = list(gpu.run(settings))
            assert not card.live
    finally:
        for probe in probes:
            probe.cache_clear()
    cases = [row["case"] for row in rows]
    assert "smoke, fp8, float8 products" in cases and "smoke, copy from pinned memory" in cases
    assert {row["part"] for row in rows} == {"ceiling", "forward", "VAE", "clip"}
