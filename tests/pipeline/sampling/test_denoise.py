import pytest
import torch
from multitalk_pack.pipeline.config import GuidanceConfig
from multitalk_pack.pipeline.sampling.denoise import CleanMotion, NoAnchor, NoisedMotion, denoise
from multitalk_pack.pipeline.sampling.guidance import Guidance
from multitalk_pack.pipeline.sampling.samplers import EulerSampler, RenoiseSampler, Sampler
from multitalk_pack.pipeline.sampling.schedule import timesteps
from support.golden import Golden

MULTITALK, INFINITETALK, FLASHTALK = map(Golden, ("sampling_trace", "infinitetalk_trace", "flashtalk_trace"))
CASES = [(golden, case) for golden in (MULTITALK, INFINITETALK, FLASHTALK) for case in golden.cases]


def ignore(step, clean_estimate):
    pass


def anchor_of(golden: Golden, case: str):
    if golden is not MULTITALK:
        return CleanMotion(golden[f"in.{case}.motion_latents"])
    if f"in.{case}.motion_noise" in golden:
        return NoisedMotion(golden[f"in.{case}.motion_latents"], iter(golden[f"in.{case}.motion_noise"]))
    return NoAnchor()


def sampler_of(golden: Golden, case: str) -> Sampler:
    return RenoiseSampler(iter(golden[f"in.{case}.renoise"])) if golden is FLASHTALK else EulerSampler()


def timesteps_of(golden: Golden, facts: dict) -> torch.Tensor:
    """FlashTalk leaves the tail out where it was trained to: at two and four steps."""
    return timesteps(facts["steps"], facts["shift"], skip_tail=golden is FLASHTALK and facts["steps"] in (2, 4))


def guidance_of(golden: Golden, facts: dict) -> Guidance:
    if golden is FLASHTALK:
        return Guidance(GuidanceConfig(1, 1))
    projection = {"momentum": facts["momentum"], "norm_threshold": facts["norm"]} if facts["apg"] else {}
    return Guidance(GuidanceConfig(facts["text"], facts["audio"], facts["apg"], **projection))


@pytest.mark.parametrize(("golden", "case"), CASES, ids=[case for _, case in CASES])
def test_a_recorded_run_is_replayed_step_by_step(golden, case):
    facts, inputs, estimates = golden.cases[case], [], []

    def predict(latents, timestep, step, pass_):
        assert timestep == schedule[step]
        if len(inputs) == step:
            inputs.append(latents)
        return golden[f"in.{case}.pred_{pass_.value}"][step]

    schedule, guidance = timesteps_of(golden, facts), guidance_of(golden, facts)
    assert {pass_.value for pass_ in guidance.passes} == set(facts["roles_per_step"])
    final = denoise(
        predict, golden[f"in.{case}.noise"], schedule, guidance, anchor_of(golden, case), sampler_of(golden, case),
        lambda step, clean: estimates.append(clean),
    )  # fmt: skip
    golden.assert_close(schedule, f"out.{case}.timesteps")
    golden.assert_close(torch.stack([*inputs, final]), f"out.{case}.latents")
    if golden is FLASHTALK:
        golden.assert_close(torch.stack(estimates), f"mid.{case}.clean")


def towards(clean: torch.Tensor):
    """A perfect model: from any point the straight way to `clean`."""
    return lambda latents, timestep, step, pass_: (latents - clean) / (timestep / 1000)


@pytest.mark.parametrize("renoises", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_perfect_model_arrives_whatever_the_number_of_steps(steps, renoises):
    generator, estimates = torch.Generator().manual_seed(0), []
    clean, noise, *draws = torch.randn(2 + steps, 4, 3, 2, 2, generator=generator)
    sampler = RenoiseSampler(iter(draws)) if renoises else EulerSampler()
    final = denoise(
        towards(clean), noise, timesteps(steps, 5.0), Guidance(GuidanceConfig()), NoAnchor(), sampler,
        lambda step, estimate: estimates.append((step, estimate)),
    )  # fmt: skip
    torch.testing.assert_close(final, clean, atol=1e-4, rtol=1e-4)
    assert [step for step, _ in estimates] == list(range(steps))
    torch.testing.assert_close(estimates[0][1], clean, atol=1e-4, rtol=1e-4)


def test_a_renoised_step_does_not_depend_on_the_noise_before_it():
    """From one clean estimate, whatever latents it came from, the next latents are those of the fresh noise alone."""
    clean, fresh, *noises = torch.randn(4, 4, 3, 2, 2)
    sigma, next_sigma = torch.tensor(0.8), torch.tensor(0.5)
    for noise in noises:
        latents = (1 - sigma) * clean + sigma * noise
        renoised = RenoiseSampler(iter([fresh])).step(latents, noise - clean, sigma, next_sigma)
        torch.testing.assert_close(renoised, (clean + fresh) / 2)


def test_noised_motion_ends_clean_and_leaves_the_later_frames_alone():
    motion, noise = torch.randn(4, 2, 2, 2), torch.randn(4, 3, 2, 2)
    draws = iter(torch.randn(6, 4, 2, 2, 2))
    anchor = NoisedMotion(motion, draws)
    clean = torch.randn(4, 3, 2, 2)
    final = denoise(
        towards(clean), noise, timesteps(5, 5.0), Guidance(GuidanceConfig()), anchor, EulerSampler(), ignore
    )
    assert torch.equal(final[:, :2], motion)
    torch.testing.assert_close(final[:, 2:], clean[:, 2:], atol=1e-4, rtol=1e-4)
    assert next(draws, None) is None  # one draw before the first step and one after every step


def test_clean_motion_stands_in_every_input_of_the_model():
    motion = torch.randn(4, 1, 2, 2)

    def predict(latents, timestep, step, pass_):
        assert torch.equal(latents[:, :1], motion)
        return torch.ones_like(latents, dtype=torch.bfloat16)

    final = denoise(
        predict, torch.randn(4, 3, 2, 2), timesteps(3, 7.0), Guidance(GuidanceConfig()), CleanMotion(motion),
        EulerSampler(), ignore,
    )  # fmt: skip
    assert torch.equal(final[:, :1], motion) and final.dtype == torch.float32
