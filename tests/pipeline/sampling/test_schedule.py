import pytest
import torch
from multitalk_pack.pipeline.sampling.schedule import timesteps
from support.golden import Golden

MULTITALK, FLASHTALK = Golden("schedule"), Golden("flashtalk_schedule")


@pytest.mark.parametrize("case", MULTITALK.cases)
def test_timesteps_are_the_published_ones(case):
    facts = MULTITALK.cases[case]
    MULTITALK.assert_close(timesteps(facts["steps"], facts["shift"]), f"out.{case}.timesteps")


@pytest.mark.parametrize("case", FLASHTALK.cases)
def test_timesteps_are_flashtalk_s_which_has_no_tail_at_two_and_four_steps(case):
    facts = FLASHTALK.cases[case]
    schedule = timesteps(facts["steps"], facts["shift"], skip_tail=facts["steps"] in (2, 4))
    FLASHTALK.assert_close(schedule, f"out.{case}.timesteps")


@pytest.mark.parametrize("skip_tail", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 4, 40])
def test_timesteps_fall_from_all_noise_to_none(steps, skip_tail):
    values = timesteps(steps, 7.0, skip_tail)
    assert values[0] == 1000 and values[-1] == 0
    assert (values.diff() < 0).all() and values.dtype == torch.float32


def test_without_its_tail_the_schedule_is_the_one_few_step_loras_were_trained_on():
    torch.testing.assert_close(timesteps(4, 5.0, skip_tail=True), torch.tensor([1000, 937.5, 2500 / 3, 625, 0]))
