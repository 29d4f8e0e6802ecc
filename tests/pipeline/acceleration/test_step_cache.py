"""Properties of every step cache, on a small transformer with random weights."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from multitalk_pack.pipeline.acceleration.caches import CacheKind, make_cache
from multitalk_pack.pipeline.acceleration.caches.base import ForwardInputs
from multitalk_pack.pipeline.acceleration.caches.easycache import EasyCache
from multitalk_pack.pipeline.acceleration.caches.magcache import MagCache
from multitalk_pack.pipeline.acceleration.caches.taylor import Forecast, interval_plan
from multitalk_pack.pipeline.acceleration.caches.teacache import TeaCache
from multitalk_pack.pipeline.acceleration.presets import AccelerationOptions
from multitalk_pack.pipeline.config import GuidanceConfig, Resolution
from multitalk_pack.pipeline.models.transformer.model import MultiTalkTransformer
from multitalk_pack.pipeline.sampling.denoise import NoAnchor, denoise
from multitalk_pack.pipeline.sampling.guidance import Guidance, Pass
from multitalk_pack.pipeline.sampling.samplers import EulerSampler
from multitalk_pack.pipeline.sampling.schedule import timesteps
from multitalk_pack.pipeline.shapes import LatentSize

STEPS, WARMUP = 12, 3
SIZE = LatentSize(2, 2, 4)
CACHES = [kind for kind in CacheKind if kind is not CacheKind.NONE]
ADAPTIVE = [kind for kind in CACHES if kind.default_threshold > 0]


class CountedTransformer(MultiTalkTransformer):
    """Counts the forwards whose last block was run; its memory runs out where `fails` says so."""

    runs = 0
    fails = False

    def count(self, *_):
        if self.fails:
            raise torch.OutOfMemoryError
        self.runs += 1


@pytest.fixture
def transformer() -> CountedTransformer:
    torch.manual_seed(0)
    small = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 3, "ffn_dim": 32, "freq_dim": 16}
    context = {"text_dim": 8, "text_len": 4, "image_dim": 8}
    audio = {"audio_features": (1, 4), "audio_intermediate_dim": 8, "audio_dim": 8, "audio_tokens": 2}
    transformer = CountedTransformer(**small, **context, **audio).eval()
    transformer.blocks[-1].register_forward_pre_hook(transformer.count)
    transformer.condition_embedder.time_proj.bias += 2  # TeaCache's polynomial is meant for small relative changes
    return transformer


def run(transformer: CountedTransformer, cache) -> torch.Tensor:
    """The final latents of a guided run."""
    random = torch.Generator().manual_seed(1)
    window = transformer.prepare_window(SIZE, torch.randn(20, 2, 2, 4, generator=random), torch.zeros(3, 8))
    prompt, audio = torch.randn(3, 8, generator=random), torch.randn(1, 5, 5, 1, 4, generator=random)
    inputs = {
        Pass.COND: transformer.prepare_pass(window, prompt, audio),
        Pass.DROP_AUDIO: transformer.prepare_pass(window, prompt, transformer.zero_audio(5)),
    }

    def predict(latents, timestep, step, pass_):
        if cache is None:
            tokens, time = transformer.embed(latents, timestep, inputs[pass_])
            return transformer.head(transformer.run_blocks(tokens, time, inputs[pass_]), time, inputs[pass_])
        return cache.velocity(ForwardInputs(transformer, latents, timestep, step, inputs[pass_], pass_))

    transformer.runs = 0
    guidance, noise = Guidance(GuidanceConfig(1.0, 2.0)), torch.randn(SIZE.shape, generator=random)
    return denoise(
        predict, noise, timesteps(STEPS, 5.0), guidance, NoAnchor(), EulerSampler(), lambda step, guess: None
    )


def cache_of(transformer: CountedTransformer, kind: CacheKind, **knobs):
    options = AccelerationOptions(kind, warmup=WARMUP, **knobs)
    return make_cache(options, transformer, timesteps(STEPS, 5.0), Resolution.P480)


def test_without_a_cache_every_forward_is_run(transformer):
    run(transformer, cache_of(transformer, CacheKind.NONE))
    assert transformer.runs == 2 * STEPS


@pytest.mark.parametrize("kind", ADAPTIVE)
def test_with_threshold_zero_every_step_is_run_and_nothing_changes(transformer, kind):
    exact = run(transformer, None)
    assert torch.equal(run(transformer, cache_of(transformer, kind, threshold=0.0)), exact)
    assert transformer.runs == 2 * STEPS


@pytest.mark.parametrize("kind", CACHES)
def test_steps_are_saved_in_both_passes_alike_and_the_end_stays_near(transformer, kind):
    exact = run(transformer, None)
    cached = run(transformer, cache_of(transformer, kind, threshold=10.0))
    assert 2 * WARMUP <= transformer.runs < 2 * STEPS and transformer.runs % 2 == 0
    assert not torch.equal(cached, exact)
    assert (cached - exact).norm() < 0.2 * exact.norm()


@pytest.mark.parametrize("kind", CacheKind)
def test_a_cache_keeps_as_many_tensors_as_it_declares(transformer, kind):
    cache = cache_of(transformer, kind)
    run(transformer, cache)
    tensors = [item for item in _everything_in(cache) if isinstance(item, torch.Tensor)]
    tokens = {item.data_ptr() for item in tensors if item.numel() == SIZE.num_tokens * 24}
    assert len(tokens) == kind.num_tensors(2)


def _everything_in(item):
    """`item`, what it holds, what that holds and so on."""
    yield item
    inside = vars(item) if hasattr(item, "__dict__") else item
    if isinstance(inside, dict):
        inside = inside.values()
    if isinstance(inside, Iterable) and not isinstance(inside, str | torch.Tensor):
        for part in inside:
            yield from _everything_in(part)


@pytest.mark.parametrize("kind", CACHES)
def test_nothing_is_left_on_the_model(transformer, kind):
    exact, before = run(transformer, None), set(vars(transformer))
    run(transformer, cache_of(transformer, kind, threshold=10.0))
    assert set(vars(transformer)) == before
    assert torch.equal(run(transformer, None), exact)


@pytest.mark.parametrize("kind", CACHES)
def test_a_forward_that_failed_can_be_repeated(transformer, kind):
    window = transformer.prepare_window(SIZE, torch.zeros(20, 2, 2, 4), torch.zeros(3, 8))
    inputs = transformer.prepare_pass(window, torch.zeros(2, 8), transformer.zero_audio(5))
    smooth, interrupted = (cache_of(transformer, kind, threshold=0.5) for _ in range(2))
    latents = torch.randn(SIZE.shape)
    for step, timestep in enumerate(timesteps(STEPS, 5.0)[:-1]):
        forward = ForwardInputs(transformer, latents, timestep, step, inputs, Pass.COND)
        velocity = smooth.velocity(forward)
        transformer.fails = True
        with suppress(torch.OutOfMemoryError):
            interrupted.velocity(forward)
        transformer.fails = False
        torch.testing.assert_close(interrupted.velocity(forward), velocity)
        latents = latents - 0.1 * velocity


def test_a_pass_that_comes_late_is_run_rather_than_guessed(transformer):
    window = transformer.prepare_window(SIZE, torch.zeros(20, 2, 2, 4), torch.zeros(3, 8))
    inputs = transformer.prepare_pass(window, torch.zeros(2, 8), transformer.zero_audio(5))
    latents, timestep, planned = torch.randn(SIZE.shape), torch.tensor(500.0), TeaCache([True, False])
    planned.velocity(ForwardInputs(transformer, latents, timestep, 0, inputs, Pass.COND))
    velocity = planned.velocity(ForwardInputs(transformer, latents, timestep, 1, inputs, Pass.UNCOND))
    assert torch.equal(velocity, transformer(latents, timestep, inputs))


class Fading:
    """Blocks whose residual shrinks by `ratio` from step to step."""

    def __init__(self, ratio):
        self.ratio, self.steps = ratio, []

    def embed(self, latents, step, inputs):
        return latents, step

    def run_blocks(self, tokens, step, inputs):
        self.steps.append(step)
        return tokens + self.ratio**step

    def head(self, tokens, step, inputs):
        return tokens


@pytest.mark.parametrize(
    ("ratio", "steps"),
    [
        (0.97, [0, 1, 2, 3, 5, 7, 9, 11]),  # errors 0.03, then |1 - 0.97^2| = 0.0591 more: 0.0891 is too much
        (0.98, [0, 1, 2, 3, 6, 9, 11]),  # 0.02, then 0.0396 more: 0.0596 is still fine
        (1.0, [0, 1, 2, 3, 7, 11]),  # no error at all, so three are left out; the last one is run in any case
        (0.9, list(range(12))),
    ],
)
def test_magcache_adds_up_the_errors_that_magnitudes_foretell(ratio, steps):
    blocks, cache = Fading(ratio), MagCache(12, threshold=0.06, warmup=4)
    for step in range(12):
        cache.velocity(ForwardInputs(blocks, torch.zeros(2, 3), step, step, None, Pass.COND))
    assert blocks.steps == steps


def test_easycache_runs_again_where_latents_jump(transformer):
    window = transformer.prepare_window(SIZE, torch.zeros(20, 2, 2, 4), torch.zeros(3, 8))
    inputs = transformer.prepare_pass(window, torch.zeros(2, 8), transformer.zero_audio(5))
    cache, latents, runs = EasyCache(8, threshold=0.05, warmup=2), torch.randn(SIZE.shape), []
    for step, move in enumerate([0, 0.1, 1e-5, 1e-5, 10.0, 1e-5, 1e-5, 1e-5]):
        transformer.runs, latents = 0, latents + move * torch.randn(SIZE.shape)
        cache.velocity(ForwardInputs(transformer, latents, torch.tensor(900.0 - step), step, inputs, Pass.COND))
        runs.append(bool(transformer.runs))
    assert runs == [True, True, False, False, True, False, False, True]


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_forecast_goes_on_along_its_polynomial(order):
    def truth(step):
        return torch.tensor([1.0 + 2 * step]) if order else torch.tensor([3.0])

    forecast = Forecast(order)
    for step in (0, 1, 2, 4, 6):
        forecast.update(step, truth(step))
    torch.testing.assert_close(forecast.at(9), truth(9))


def test_an_even_plan_runs_the_first_steps_and_the_last():
    assert interval_plan(9, 3, 3) == [True, True, True, False, False, True, False, False, True]
    assert all(interval_plan(5, 1, 1)) and all(interval_plan(3, 3, 7))


def test_options_are_not_shared_between_caches(transformer):
    options = AccelerationOptions(CacheKind.EASY)
    first = make_cache(options, transformer, timesteps(STEPS, 5.0), Resolution.P480)
    assert make_cache(replace(options), transformer, timesteps(STEPS, 5.0), Resolution.P480) is not first
