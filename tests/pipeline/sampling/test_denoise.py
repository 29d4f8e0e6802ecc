import pytest
import torch
from multitalk_pack.pipeline.config import GuidanceConfig
from multitalk_pack.pipeline.sampling.denoise import CleanMotion, NoAnchor, NoisedMotion, denoise
from multitalk_pack.pipeline.sampling.guidance import Guidance
from multitalk_pack.pipeline.sampling.schedule import timesteps
from support.golden import Golden

MULTITALK, INFINITETALK = Golden("sampling_trace"), Golden("infinitetalk_trace")
CASES = [(MULTITALK, case) for case in MULTITALK.cases] + [(INFINITETALK, case) for case in INFINITETALK.cases]


def ignore(step, clean_guess):
    pass


def anchor_of(golden: Golden, case: str):
    if golden is INFINITETALK:
        return CleanMotion(golden[f"in.{case}.motion_latents"])
    if f"in.{case}.motion_noise" in golden:
        return NoisedMotion(golden[f"in.{case}.motion_latents"], iter(golden[f"in.{case}.motion_noise"]))
    return NoAnchor()


def guidance_of(facts: dict) -> Guidance:
    projection = {"momentum": facts["momentum"], "norm_threshold": facts["norm"]} if facts["apg"] else {}
    return Guidance(GuidanceConfig(facts["text"], facts["audio"], facts["apg"], **projection))


@pytest.mark.parametrize(("golden", "case"), CASES, ids=[case for _, case in CASES])
def test_a_recorded_run_is_replayed_step_by_step(golden, case):
    facts, seen = golden.cases[case], []

    def predict(latents, timestep, step, pass_):
        assert timestep == schedule[step]
        if len(seen) == step:
            seen.append(latents)
        return golden[f"in.{case}.pred_{pass_.value}"][step]

    schedule = timesteps(facts["steps"], facts["shift"])
    guidance = guidance_of(facts)
    assert {pass_.value for pass_ in guidance.passes} == set(facts["roles_per_step"])
    final = denoise(predict, golden[f"in.{case}.noise"], schedule, guidance, anchor_of(golden, case), ignore)
    golden.assert_close(schedule, f"out.{case}.timesteps")
    golden.assert_close(torch.stack([*seen, final]), f"out.{case}.latents")


def towards(clean: torch.Tensor):
    """A perfect model: from any point the straight way to `clean`."""
    return lambda latents, timestep, step, pass_: (latents - clean) / (timestep / 1000)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_perfect_model_arrives_whatever_the_number_of_steps(steps):
    clean, noise = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    guesses = []
    final = denoise(
        towards(clean), noise, timesteps(steps, 5.0), Guidance(GuidanceConfig()), NoAnchor(),
        lambda step, guess: guesses.append((step, guess)),
    )  # fmt: skip
    torch.testing.assert_close(final, clean, atol=1e-4, rtol=1e-4)
    assert [step for step, _ in guesses] == list(range(steps))
    torch.testing.assert_close(guesses[0][1], clean, atol=1e-4, rtol=1e-4)


def test_noised_motion_ends_clean_and_leaves_the_later_frames_alone():
    motion, noise = torch.randn(4, 2, 2, 2), torch.randn(4, 3, 2, 2)
    draws = iter(torch.randn(6, 4, 2, 2, 2))
    anchor = NoisedMotion(motion, draws)
    clean = torch.randn(4, 3, 2, 2)
    final = denoise(towards(clean), noise, timesteps(5, 5.0), Guidance(GuidanceConfig()), anchor, ignore)
    assert torch.equal(final[:, :2], motion)
    torch.testing.assert_close(final[:, 2:], clean[:, 2:], atol=1e-4, rtol=1e-4)
    assert next(draws, None) is None  # one draw before the first step and one after every step


def test_clean_motion_stands_in_every_input_of_the_model():
    motion = torch.randn(4, 1, 2, 2)

    def predict(latents, timestep, step, pass_):
        assert torch.equal(latents[:, :1], motion)
        return torch.ones_like(latents, dtype=torch.bfloat16)

    final = denoise(
        predict, torch.randn(4, 3, 2, 2), timesteps(3, 7.0), Guidance(GuidanceConfig()), CleanMotion(motion), ignore
    )
    assert torch.equal(final[:, :1], motion) and final.dtype == torch.float32
