"""The published VAE on a card: bfloat16 where the card has it, and the memory that its decoder is planned with."""

import pytest
import torch

from benchmarks.rehearsal.fake_card import FakeCard
from benchmarks.rehearsal.networks import fake_vae
from pipeline.memory.placement import decode_bytes
from pipeline.weights.handles import Precision

HEIGHT, WIDTH, NUM_LATENTS = 480, 832, 4
TB = 10**12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_decoder_takes_the_planned_memory_and_few_passes(dtype):
    latents = torch.zeros(16, NUM_LATENTS, HEIGHT // 8, WIDTH // 8)
    with FakeCard() as card:
        vae = fake_vae(dtype)
        with card.record() as figures:
            shapes = [tuple(frames.shape) for frames in vae.decode(latents)]
    assert shapes == [(3, 1, HEIGHT, WIDTH)] + [(3, 4, HEIGHT, WIDTH)] * (NUM_LATENTS - 1)
    peak = figures.peak_bytes - figures.start_bytes
    assert 0.85 < peak / decode_bytes(HEIGHT, WIDTH, dtype.itemsize) < 1.05
    if dtype is torch.bfloat16:
        moved = figures.bytes["elementwise"] + figures.bytes["copy"]
        assert moved < 0.95 * TB * NUM_LATENTS / 21  # beside the convolutions, for a window of 81 frames


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 5), torch.float32), ((8, 6), torch.bfloat16), ((9, 0), torch.bfloat16)]
)
def test_the_vae_is_in_bfloat16_on_cards_that_have_it(capability, dtype):
    with FakeCard(capability=capability):
        assert Precision.AUTO.of_vae_on(torch.device("cuda")) is dtype
        assert Precision.FP32.of_vae_on(torch.device("cuda")) is torch.float32
    assert Precision.AUTO.of_vae_on(torch.device("cpu")) is torch.float32
