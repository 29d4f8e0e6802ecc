import logging
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from multitalk_pack.pipeline.acceleration.attention_kernels import AttentionKernel, find_kernel
from multitalk_pack.pipeline.acceleration.caches import CacheKind
from multitalk_pack.pipeline.acceleration.caches.taylor import interval_plan
from multitalk_pack.pipeline.acceleration.presets import (
    AccelerationOptions,
    accelerated,
    make_guidance,
    preset,
)
from multitalk_pack.pipeline.config import Acceleration, Fp8Products, GenerationConfig, GuidanceConfig, Recipe
from multitalk_pack.pipeline.errors import ConfigError
from multitalk_pack.pipeline.generation.run_spec import make_run_spec
from multitalk_pack.pipeline.models.transformer import scaled_dot_product
from multitalk_pack.pipeline.models.transformer.model import MultiTalkTransformer
from torch.nn.functional import scaled_dot_product_attention

CPU = torch.device("cpu")


def test_no_acceleration_is_exact():
    options = preset(Acceleration.NONE, 40, 5.0)
    assert options == AccelerationOptions()
    assert options.cache is CacheKind.NONE and options.guidance_every == 1


@pytest.mark.parametrize("acceleration", [Acceleration.REGULAR, Acceleration.HIGH])
@pytest.mark.parametrize("steps", [1, 4, 8, 9, 20, 40, 100])
def test_a_preset_fits_its_own_request(acceleration, steps):
    options = preset(acceleration, steps, text_scale=1.0)
    options.check(steps)
    assert (options.cache is CacheKind.NONE) == (steps <= 8)
    assert options.warmup < max(steps, 6)
    assert options.interval < max(steps, 4)


def test_high_runs_a_tenth_of_the_forwards():
    options = preset(Acceleration.HIGH, 40, 5.0)
    plan = interval_plan(40, options.interval, options.warmup)
    guidance = make_guidance(options, GuidanceConfig(), 40)
    assert sum(len(guidance.passes_at(step)) for step in range(40) if plan[step]) == 11  # of 40 x 3


@pytest.mark.parametrize("acceleration", Acceleration)
def test_float8_products_are_the_presets_choice_or_the_persons(acceleration):
    preset_options = preset(acceleration, 40, 5.0)
    assert preset_options.fp8_products == (acceleration is not Acceleration.NONE)
    switch = {Fp8Products.AUTO: preset_options.fp8_products, Fp8Products.ON: True, Fp8Products.OFF: False}
    for choice, is_on in switch.items():
        config = GenerationConfig(acceleration=acceleration, fp8_products=choice)
        spec = make_run_spec(config, Recipe.MULTITALK, (64, 64), 13)
        assert spec.acceleration == replace(preset_options, fp8_products=is_on)


def test_few_steps_with_text_guidance_are_refused_at_high():
    with pytest.raises(ConfigError, match="text scale to 1"):
        preset(Acceleration.HIGH, 4, 5.0)
    assert preset(Acceleration.REGULAR, 4, 5.0).cache is CacheKind.NONE


@pytest.mark.parametrize("kind", [kind for kind in CacheKind if kind is not CacheKind.NONE])
def test_a_cache_of_very_few_steps_is_refused(kind):
    with pytest.raises(ConfigError, match="finds nothing to reuse in 6 steps"):
        AccelerationOptions(kind).check(steps=6)
    AccelerationOptions(kind).check(steps=7)


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="Take one of them"):
        AccelerationOptions(CacheKind.EASY, guidance_every=2)
    with pytest.raises(ConfigError, match="threshold"):
        AccelerationOptions(CacheKind.EASY, threshold=-1)
    with pytest.raises(ConfigError, match="warmup"):
        AccelerationOptions(warmup=0)
    with pytest.raises(ConfigError, match="guidance_until"):
        AccelerationOptions(guidance_until=0)


@pytest.mark.parametrize(("share", "num_steps"), [(1, 40), (0.5, 20), (0.001, 1)])
def test_guidance_ends_after_its_share_of_the_steps(share, num_steps):
    guidance = make_guidance(AccelerationOptions(guidance_until=share), GuidanceConfig(), 40)
    assert [len(guidance.passes_at(step)) for step in range(40)] == [3] * num_steps + [1] * (40 - num_steps)


def test_a_shared_model_is_restored_also_after_an_error():
    transformer = small_transformer()
    with (
        pytest.raises(KeyError),
        accelerated(transformer, AccelerationOptions(attention=AttentionKernel.MATH), CPU, steps=40),
    ):
        assert transformer.blocks[0].attn1.attend is not scaled_dot_product_attention
        raise KeyError
    assert all(block.attn1.attend is scaled_dot_product_attention for block in transformer.blocks)
    assert all(block.attn2.attend is scaled_dot_product_attention for block in transformer.blocks)


def small_transformer() -> MultiTalkTransformer:
    small = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2, "ffn_dim": 16, "freq_dim": 16}
    audio = {"audio_features": (1, 4), "audio_intermediate_dim": 8, "audio_dim": 8, "audio_tokens": 2}
    return MultiTalkTransformer(text_dim=8, text_len=4, image_dim=8, **small, **audio)


@pytest.mark.parametrize("kernel", AttentionKernel)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_attention_of_every_kernel_is_the_formula(kernel, dtype):
    attend = find_kernel(kernel, CPU, dtype, 16)
    query, key, value = (torch.randn(1, 2, n, 16, dtype=dtype) for n in (5, 7, 7))
    formula = torch.softmax(query.float() @ key.float().mT / 4, -1) @ value.float()
    torch.testing.assert_close(attend(query, key, value).float(), formula, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_the_plain_formula_is_the_same_however_few_queries_it_takes_at_a_time(monkeypatch, rows):
    query, key, value = (torch.randn(1, 2, n, 16, dtype=torch.float64) for n in (10, 7, 7))
    monkeypatch.setattr(scaled_dot_product, "MAX_SCORES", rows * 2 * 7)
    attn_out = find_kernel(AttentionKernel.MATH, CPU, torch.float64, 16)(query, key, value)
    torch.testing.assert_close(attn_out, torch.softmax(query @ key.mT / 4, -1) @ value)


@pytest.mark.parametrize("error", [subprocess.CalledProcessError(1, "cc"), OSError("no compiler"), Exception("PTX")])
def test_a_kernel_that_cannot_be_compiled_here_is_replaced(monkeypatch, caplog, error):
    def sageattn(*_, **__):
        raise error

    monkeypatch.setitem(sys.modules, "sageattention", SimpleNamespace(sageattn=sageattn))
    find_kernel.cache_clear()
    assert find_kernel(AttentionKernel.SAGE, CPU, torch.float32, 16) is scaled_dot_product_attention
    assert f"The sage attention kernel is replaced: {error}" in caplog.text
    find_kernel.cache_clear()


def test_a_kernel_that_fails_is_replaced_with_one_line_in_the_log(caplog):
    find_kernel.cache_clear()
    with caplog.at_level(logging.INFO):
        attend = find_kernel(AttentionKernel.CUDNN, CPU, torch.float32, 16)
    assert attend is scaled_dot_product_attention
    assert len(caplog.records) == 1 and "cuDNN attention kernel is replaced" in caplog.text
    with caplog.at_level(logging.INFO):
        find_kernel(AttentionKernel.CUDNN, CPU, torch.float32, 16)
    assert len(caplog.records) == 1  # tried once a process


@pytest.mark.parametrize("kernel", [AttentionKernel.AUTO, AttentionKernel.FAST])
def test_devices_without_a_fused_kernel_hold_few_scores_at_once(kernel, monkeypatch):
    calls = []

    def attend(query, key, value):
        calls.append(query.shape[2] * key.shape[2])
        return scaled_dot_product_attention(query, key, value)

    monkeypatch.setattr(scaled_dot_product, "scaled_dot_product_attention", attend)
    monkeypatch.setattr(scaled_dot_product, "MAX_SCORES", 2 * 50)
    query, key, value = (torch.randn(1, 2, n, 16) for n in (20, 10, 10))
    chunked = find_kernel(kernel, torch.device("mps"), torch.float32, 16)
    torch.testing.assert_close(chunked(query, key, value), scaled_dot_product_attention(query, key, value))
    assert calls == [50] * 4


@pytest.mark.parametrize("steps", [4, 8, 20, 40])
def test_regular_and_high_take_sage_attention_where_it_works_and_none_never_does(steps):
    presets = {acceleration: preset(acceleration, steps, text_scale=1.0).attention for acceleration in Acceleration}
    fast = AttentionKernel.FAST
    assert presets == {Acceleration.NONE: AttentionKernel.AUTO, Acceleration.REGULAR: fast, Acceleration.HIGH: fast}
