"""TeaCache against the published program: its plan, and a whole cached run."""

from functools import cache

import pytest
import torch
from multitalk_pack.pipeline.acceleration.caches.base import ForwardInputs, StepCache
from multitalk_pack.pipeline.acceleration.caches.teacache import TeaCache, teacache_plan, time_changes
from multitalk_pack.pipeline.config import GuidanceConfig
from multitalk_pack.pipeline.models.transformer.inputs import PassInputs
from multitalk_pack.pipeline.models.transformer.model import MultiTalkTransformer
from multitalk_pack.pipeline.sampling.denoise import NoAnchor, denoise
from multitalk_pack.pipeline.sampling.guidance import Guidance, Pass
from multitalk_pack.pipeline.sampling.samplers import EulerSampler
from multitalk_pack.pipeline.sampling.schedule import timesteps
from multitalk_pack.pipeline.shapes import LatentSize
from support.golden import Golden
from support.transformer import from_golden

GOLDEN = Golden("teacache")
FACTS = GOLDEN.cases["default"]
COEFFICIENTS = FACTS["coefficients_highest_power_first"]
NUM_PASSES = len(FACTS["order_of_passes"])
WARMUP = FACTS["always_computed_calls"] // NUM_PASSES


@cache
def transformer() -> MultiTalkTransformer:
    return from_golden(GOLDEN)


def schedule() -> torch.Tensor:
    return timesteps(FACTS["steps"], FACTS["shift"])


def plan(threshold: float) -> list[bool]:
    return teacache_plan(schedule(), transformer().time_projection, COEFFICIENTS, threshold, WARMUP)


def inputs_of_passes() -> dict[Pass, PassInputs]:
    model, audio = transformer(), GOLDEN["in.audio"]
    window = model.prepare_window(LatentSize(*FACTS["latent_shape"][1:]), GOLDEN["in.y"], GOLDEN["in.clip_fea"][0])
    prompts = {True: GOLDEN["in.context"], False: GOLDEN["in.context_null"]}
    voices = {True: audio, False: model.zero_audio(audio.shape[1])}
    return {
        pass_: model.prepare_pass(window, prompts[pass_.uses_prompt], voices[pass_.uses_audio])
        for pass_ in map(Pass, FACTS["order_of_passes"])
    }


def run(step_cache: StepCache | None) -> tuple[list[torch.Tensor], dict[Pass, list[torch.Tensor]]]:
    """The latents before every step and at the end, and the velocities of each pass."""
    inputs = inputs_of_passes()
    states, velocities = [], {pass_: [] for pass_ in inputs}

    def predict(latents, timestep, step, pass_):
        if pass_ is Pass.COND:
            states.append(latents)
        forward = ForwardInputs(transformer(), latents, timestep, step, inputs[pass_], pass_)
        exact = transformer()(latents, timestep, inputs[pass_]) if step_cache is None else None
        velocities[pass_].append(step_cache.velocity(forward) if step_cache else exact)
        return velocities[pass_][-1]

    guidance = Guidance(GuidanceConfig(FACTS["text_scale"], FACTS["audio_scale"]))
    final = denoise(
        predict, GOLDEN["in.noise"], schedule(), guidance, NoAnchor(), EulerSampler(), lambda step, guess: None
    )
    return [*states, final], velocities


def test_the_plan_is_the_published_one_for_all_passes():
    published = GOLDEN["out.should_calc"].bool()
    assert plan(FACTS["threshold"]) == published[:, 0].tolist()
    assert (published == published[:, :1]).all()


def test_the_numbers_behind_the_plan_are_the_published_ones():
    changes = time_changes(schedule(), transformer().time_projection)[WARMUP - 1 :]
    GOLDEN.assert_close(torch.tensor(changes).repeat_interleave(NUM_PASSES), "out.rel_l1")
    rescaled, sums, total = [], [], 0.0
    for change, runs in zip(changes, plan(FACTS["threshold"])[WARMUP:], strict=True):
        rescaled.append(sum(c * change**power for power, c in enumerate(reversed(COEFFICIENTS))))
        total += rescaled[-1]
        sums.append(total)
        total = 0.0 if runs else total
    GOLDEN.assert_close(torch.tensor(rescaled).repeat_interleave(NUM_PASSES), "out.rescaled")
    GOLDEN.assert_close(torch.tensor(sums).repeat_interleave(NUM_PASSES), "out.accumulated")


def test_a_cached_run_is_the_published_one():
    states, velocities = run(TeaCache(plan(FACTS["threshold"])))
    GOLDEN.assert_close(torch.stack(states), "out.latents")
    for pass_, values in velocities.items():
        GOLDEN.assert_close(torch.stack(values), f"out.pred_{pass_.value}")


def test_without_the_cache_the_run_ends_elsewhere_as_published():
    GOLDEN.assert_close(run(None)[0][-1], "out.latents_cache_disabled_last")


@pytest.mark.parametrize(("threshold", "runs"), [(0.0, FACTS["steps"]), (100.0, WARMUP)])
def test_a_threshold_runs_from_all_steps_to_the_first_ones(threshold, runs):
    assert sum(plan(threshold)) == runs


def test_a_run_of_one_step_has_a_plan():
    assert teacache_plan(timesteps(1, 7.0), transformer().time_projection, COEFFICIENTS, 0.2) == [True]
