"""The published transformer's forward on a card: its FLOPs, its memory, its waits. Two blocks stand for forty."""

import pytest
import torch

from benchmarks.rehearsal import TIMESTEP, forwards
from benchmarks.rehearsal.fake_card import FakeCard
from benchmarks.rehearsal.networks import SIZES, fake_inputs, fake_latents, fake_transformer
from pipeline.acceleration import fp8_products
from pipeline.acceleration.caches import CacheKind, make_cache
from pipeline.acceleration.caches.base import ForwardInputs
from pipeline.acceleration.presets import AccelerationOptions
from pipeline.config import Resolution
from pipeline.memory.placement import ACTIVATION_TENSORS
from pipeline.sampling.guidance import Pass

LAYERS, WIDTH, FFN_WIDTH, IN_CHANNELS, OUT_CHANNELS = 2, 5120, 13824, 16, 16
TEXT, IMAGE, AUDIO = 512, 257, 32  # keys


def flops(size):
    """The formula: two for each multiplication of a matrix; attention has two products."""
    n = size.num_tokens
    projections = 4 + 2 + 2  # of self-attention, of text and image, of audio, each WIDTH x WIDTH
    linear = n * WIDTH * (projections * WIDTH + 2 * FFN_WIDTH)
    attention = 2 * n * (n + TEXT + IMAGE + AUDIO) * WIDTH
    ends = 4 * n * WIDTH * (IN_CHANNELS + OUT_CHANNELS)  # patches of 1 x 2 x 2
    return 2 * (LAYERS * (linear + attention) + ends)


@pytest.mark.parametrize("name", ["480p", "720p"])
def test_a_forward_takes_the_flops_of_the_formula(name):
    _, later = forwards(SIZES[name], num_layers=LAYERS)
    assert later.flops.total() == pytest.approx(flops(SIZES[name]), rel=1e-3)


@pytest.mark.parametrize("num_speakers", [1, 2])
def test_the_host_never_waits_and_nothing_is_float64(num_speakers):
    for figures in forwards(SIZES["480p"], num_speakers=num_speakers, num_layers=LAYERS):
        assert not figures.syncs and not figures.wide
    assert sum(figures.uploads.values()) < 10_000  # the timestep


@pytest.mark.parametrize("num_speakers", [1, 2])
@pytest.mark.parametrize("name", ["480p", "720p"])
def test_activations_are_as_large_as_planned(name, num_speakers):
    for figures in forwards(SIZES[name], num_speakers=num_speakers, num_layers=LAYERS):
        num_tensors = figures.work_bytes / (2 * SIZES[name].num_tokens * WIDTH)
        assert 0.985 <= num_tensors / (ACTIVATION_TENSORS - 1) <= 1.001


def test_a_block_passes_over_its_tokens_so_many_times_beside_products_and_attention():
    size = SIZES["480p"]
    one, two = (forwards(size, num_layers=num_layers)[1] for num_layers in (1, 2))
    work = [figures.bytes["elementwise"] + figures.bytes["copy"] for figures in (one, two)]
    assert (work[1] - work[0]) / (2 * size.num_tokens * WIDTH) < 73  # 0.98 TB a forward


@pytest.mark.parametrize("kind", CacheKind)
def test_a_step_cache_takes_what_is_planned_for_it(kind):
    size, timesteps = SIZES["480p"], torch.linspace(1000, 0, 8)
    options = AccelerationOptions(kind, threshold=0.5, warmup=2)
    with FakeCard() as card:
        transformer = fake_transformer(LAYERS)
        inputs, latents = fake_inputs(transformer, size), fake_latents(size)
        cache = make_cache(options, transformer, timesteps, Resolution.P480)
        transformer(latents, 500.0, inputs)  # keys and values
        with card.record() as figures:
            for step, timestep in enumerate(timesteps[:-1]):
                for pass_ in (Pass.COND, Pass.UNCOND):
                    forward = ForwardInputs(transformer, latents, timestep, step, inputs, pass_)
                    cache.velocity(forward) if cache else transformer(latents, timestep, inputs)
    planned = ACTIVATION_TENSORS + kind.num_tensors(num_passes=2)
    assert figures.peak_bytes - figures.start_bytes <= 1.01 * planned * 2 * size.num_tokens * WIDTH


@pytest.mark.parametrize(("packaging", "lora_rank"), [("fp8", 0), ("fp8", 64), ("Q4_K", 0)])
def test_packed_weights_are_decoded_once_a_forward_however_many_tokens_there_are(packaging, lora_rank):
    few, many = (forwards(SIZES[name], packaging, lora_rank, num_layers=1)[1] for name in ("smoke", "720p"))
    assert 0 < few.decoding_bytes == many.decoding_bytes


def test_the_time_projection_is_not_widened_as_a_whole():
    _, later = forwards(SIZES["smoke"], num_layers=1)
    whole_bytes = 6 * WIDTH * WIDTH * 4
    assert later.work_bytes < whole_bytes / 2


@pytest.mark.parametrize("lora_rank", [0, 64])
def test_float8_weights_are_multiplied_as_they_are_stored_on_cards_that_can(lora_rank):
    device, size = torch.device("cuda"), SIZES["480p"]
    figures = {}
    for capability in ((8, 6), (8, 9)):
        fp8_products.find_product.cache_clear()
        with FakeCard(capability=capability) as card:
            transformer = fake_transformer(1, "fp8", lora_rank)
            inputs, latents = fake_inputs(transformer, size), fake_latents(size)
            with fp8_products.fp8_products(transformer, device):
                transformer(latents, TIMESTEP, inputs)
                with card.record() as figures[capability]:
                    transformer(latents, TIMESTEP, inputs)
    fp8_products.find_product.cache_clear()
    decoded, stored = figures.values()
    assert "_scaled_mm" not in decoded.flops and 0.99 < stored.flops["_scaled_mm"] / _packed_flops(size) < 1.01
    assert decoded.decoding_bytes > 0 and not stored.syncs and stored.decoding_bytes < decoded.decoding_bytes / 100


def _packed_flops(size):
    """FLOPs of the layers that every token passes: 4 of self-attention, 2 of text, 2 of audio, and the feed-forward."""
    return 2 * size.num_tokens * WIDTH * (8 * WIDTH + 2 * FFN_WIDTH)
