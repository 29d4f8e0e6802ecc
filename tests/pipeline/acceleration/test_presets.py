"""Forwards of 40 guided steps that each preset runs."""

import torch
from multitalk_pack.pipeline.acceleration.caches import make_cache
from multitalk_pack.pipeline.acceleration.caches.base import ForwardInputs
from multitalk_pack.pipeline.acceleration.presets import make_guidance, preset
from multitalk_pack.pipeline.config import Acceleration, GuidanceConfig, Resolution
from multitalk_pack.pipeline.sampling.denoise import NoAnchor, denoise
from multitalk_pack.pipeline.sampling.samplers import EulerSampler
from multitalk_pack.pipeline.sampling.schedule import timesteps

STEPS, SHIFT, RATE = 40, 5.0, 2.0
FULL = ["cond", "drop_text", "uncond"]


class LinearNetwork:
    """The velocity is `RATE` times the latents, in every pass: a cache's decisions can be computed beforehand."""

    def __init__(self):
        self.is_run = False

    def embed(self, latents, timestep, inputs):
        return latents, None

    def run_blocks(self, tokens, time, inputs):
        self.is_run = True
        return RATE * tokens

    def head(self, tokens, time, inputs):
        return tokens

    def __call__(self, latents, timestep, inputs):
        return self.run_blocks(latents, None, inputs)


def forwards_of(acceleration: Acceleration) -> dict[int, list[str]]:
    """The passes whose blocks were run, by step, without the steps that were left out."""
    options, network = preset(acceleration, STEPS, 5.0), LinearNetwork()
    schedule, forwards = timesteps(STEPS, SHIFT), {}
    cache = make_cache(options, network, schedule, Resolution.P480)

    def predict(latents, timestep, step, pass_):
        network.is_run = False
        inputs = ForwardInputs(network, latents, timestep, step, None, pass_)
        velocity = inputs.compute() if cache is None else cache.velocity(inputs)
        if network.is_run:
            forwards.setdefault(step, []).append(pass_.value)
        return velocity

    noise = torch.ones(16, 1, 2, 2)
    denoise(
        predict,
        noise,
        schedule,
        make_guidance(options, GuidanceConfig(5.0, 4.0), STEPS),
        NoAnchor(),
        EulerSampler(),
        lambda step, clean: None,
    )
    return forwards


def test_none_runs_every_forward():
    assert forwards_of(Acceleration.NONE) == dict.fromkeys(range(STEPS), FULL)


def test_high_runs_every_eighth_step_and_guides_the_first_two():
    full, conditional = (0, 1), (9, 17, 25, 33, 39)
    forwards = dict.fromkeys(full, FULL) | {step: ["cond"] for step in conditional}
    assert forwards_of(Acceleration.HIGH) == forwards


def test_regular_runs_the_first_fifth_the_last_step_and_those_that_have_changed():
    forwards = forwards_of(Acceleration.REGULAR)
    assert list(forwards) == steps_that_easycache_runs() and len(forwards) == 28
    assert all(passes == FULL for passes in forwards.values())


def steps_that_easycache_runs() -> list[int]:
    """EasyCache's formula at threshold 0.05, for one number whose velocity is `RATE` times it: so `k` is `RATE`."""
    sigmas = (timesteps(STEPS, SHIFT) / 1000).double().tolist()
    x, before, last, error, steps = 1.0, 0.0, 0.0, 0.0, []
    for step in range(STEPS):
        error += RATE * abs(x - before) / abs(RATE * last) if last else 0.0
        if step < STEPS // 5 or step == STEPS - 1 or error >= 0.05:
            steps.append(step)
            last, error = x, 0.0
        before = x
        velocity = x + (RATE - 1) * last  # reused: the latents and the last difference
        x -= (sigmas[step] - sigmas[step + 1]) * velocity
    return steps
