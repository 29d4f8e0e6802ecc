import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from multitalk_pack.pipeline.config import GuidanceConfig
from multitalk_pack.pipeline.sampling.guidance import Guidance, Pass
from support.golden import Golden

SCALES = st.floats(0, 10, allow_nan=False)


def velocities(seed: int = 0) -> dict[Pass, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {pass_: torch.randn(4, 2, 3, 3, generator=generator) for pass_ in Pass}


def run(guidance: Guidance, outputs: dict[Pass, torch.Tensor], step: int = 0) -> torch.Tensor:
    return guidance.combine({pass_: outputs[pass_] for pass_ in guidance.passes_at(step)})


@pytest.mark.parametrize("projected", [False, True])
def test_with_all_scales_at_one_a_step_is_one_forward(projected):
    guidance, outputs = Guidance(GuidanceConfig(1, 1, projected)), velocities()
    assert guidance.passes == (Pass.COND,)
    assert torch.equal(run(guidance, outputs), outputs[Pass.COND])


@pytest.mark.parametrize(
    ("text", "audio", "projected", "passes"),
    [
        (5, 4, False, (Pass.COND, Pass.DROP_TEXT, Pass.UNCOND)),
        (4, 4, False, (Pass.COND, Pass.UNCOND)),
        (4, 4, True, (Pass.COND, Pass.DROP_TEXT, Pass.UNCOND)),
        (5, 1, False, (Pass.COND, Pass.DROP_TEXT)),
        (1, 2, False, (Pass.COND, Pass.DROP_AUDIO)),
    ],
)
def test_only_passes_that_do_not_cancel_are_run(text, audio, projected, passes):
    assert Guidance(GuidanceConfig(text, audio, projected)).passes == passes


@given(text=SCALES, audio=SCALES)
def test_the_published_formula_holds_whichever_passes_are_run(text, audio):
    outputs = velocities()
    c, d, u, b = (outputs[pass_] for pass_ in (Pass.COND, Pass.DROP_TEXT, Pass.UNCOND, Pass.DROP_AUDIO))
    expected = b + audio * (c - b) if text == 1 else u + text * (c - d) + audio * (d - u)
    torch.testing.assert_close(run(Guidance(GuidanceConfig(text, audio)), outputs), expected, atol=1e-4, rtol=1e-4)


@given(text=SCALES.filter(lambda scale: abs(scale - 1) > 1e-3))
def test_equal_scales_leave_out_drop_text_exactly(text):
    outputs = velocities()
    expected = outputs[Pass.UNCOND] + text * (outputs[Pass.COND] - outputs[Pass.UNCOND])
    torch.testing.assert_close(run(Guidance(GuidanceConfig(text, text)), outputs), expected, atol=1e-4, rtol=1e-4)


def test_between_guided_steps_the_last_difference_is_added():
    guidance, first, second = Guidance(GuidanceConfig(5, 4), every=2), velocities(0), velocities(1)
    guided = run(guidance, first, step=0)
    assert guidance.passes_at(1) == (Pass.COND,) and len(guidance.passes_at(2)) == 3
    expected = second[Pass.COND] + (guided - first[Pass.COND])
    torch.testing.assert_close(run(guidance, second, step=1), expected, atol=1e-5, rtol=1e-5)


def test_after_the_guided_steps_the_last_difference_stays():
    guidance, first, second = Guidance(GuidanceConfig(5, 4), until=3), velocities(0), velocities(1)
    assert [len(guidance.passes_at(step)) for step in range(5)] == [3, 3, 3, 1, 1]
    guided = run(guidance, first, step=2)
    for step in (3, 4):
        expected = second[Pass.COND] + (guided - first[Pass.COND])
        torch.testing.assert_close(run(guidance, second, step=step), expected, atol=1e-5, rtol=1e-5)


def test_a_projected_update_is_at_a_right_angle_to_the_conditional_velocity_and_capped():
    outputs = velocities()
    config = GuidanceConfig(1, 2, projected=True, norm_threshold=3.0)
    update = run(Guidance(config), outputs) - outputs[Pass.COND]
    assert abs((update * outputs[Pass.COND]).sum()) < 1e-4
    assert update.norm() <= 3.0


def test_a_projection_survives_equal_passes_and_zero_velocities():
    zeros = dict.fromkeys(Pass, torch.zeros(4, 2, 3, 3))
    assert torch.equal(run(Guidance(GuidanceConfig(5, 4, projected=True)), zeros), zeros[Pass.COND])


@pytest.mark.parametrize("file", ["sampling_trace", "infinitetalk_trace"])
def test_projected_updates_are_the_published_ones(file):
    golden = Golden(file)
    for case, facts in golden.cases.items():
        kinds = [kind for kind in ("text", "audio") if f"mid.{case}.apg_update_{kind}" in golden]
        if kinds:
            compare_updates(golden, case, facts, kinds)


def compare_updates(golden: Golden, case: str, facts: dict, kinds: list[str]) -> None:
    """The update of one term is what the guided velocity gains when the other term's scale is 1."""
    for kind in kinds:
        scales = {"text_scale": 1.0, "audio_scale": 1.0} | {f"{kind}_scale": 2.0}
        if kind == "audio" and "text" in kinds:
            scales["text_scale"] = 1 + 1e-5  # three passes, with next to no text
        config = GuidanceConfig(**scales, projected=True, momentum=facts["momentum"], norm_threshold=facts["norm"])
        guidance = Guidance(config)
        updates = []
        for step in range(facts["steps"]):
            outputs = {pass_: golden[f"in.{case}.pred_{pass_.value}"][step] for pass_ in guidance.passes}
            updates.append(guidance.combine(outputs) - outputs[Pass.COND])
        expected = golden[f"mid.{case}.apg_update_{kind}"]
        torch.testing.assert_close(torch.stack(updates), expected, atol=3e-4, rtol=1e-4)
