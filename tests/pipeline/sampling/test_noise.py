from itertools import islice

import pytest
import torch
from multitalk_pack.pipeline.sampling.noise import NoiseSource
from support.golden import Golden

GOLDEN = Golden("sampling_trace")
FIRST_WINDOWS = [case for case in GOLDEN.cases if GOLDEN.cases[case]["clip"] == 1]


@pytest.mark.parametrize("case", FIRST_WINDOWS)
def test_the_first_window_starts_from_the_first_draw_of_the_seed(case):
    noise = NoiseSource(GOLDEN.cases[case]["seed"]).for_window(0, GOLDEN.cases[case]["latent_shape"])
    assert torch.equal(noise, GOLDEN[f"in.{case}.noise"])


def test_a_resumed_run_draws_what_an_uninterrupted_one_would_have():
    whole = NoiseSource(3)
    for window in range(2):
        whole.for_window(window, (2, 3))
        list(islice(whole.motion(window, (2, 1)), 5))
        list(islice(whole.renoise(window, (2, 3)), 4))
    resumed = NoiseSource(3)
    assert torch.equal(whole.for_window(2, (2, 3)), resumed.for_window(2, (2, 3)))
    assert all(map(torch.equal, islice(whole.motion(2, (2, 1)), 3), islice(resumed.motion(2, (2, 1)), 3)))
    assert all(map(torch.equal, islice(whole.renoise(2, (2, 3)), 3), islice(resumed.renoise(2, (2, 3)), 3)))


def test_windows_purposes_and_seeds_draw_different_noise():
    source = NoiseSource(3)
    draws = [source.for_window(window, (8,)) for window in range(3)]
    for stream in (source.motion, source.renoise):
        draws += [draw for window in range(3) for draw in islice(stream(window, (8,)), 2)]
    draws += [NoiseSource(4).for_window(1, (8,)), NoiseSource(2**64 - 1).for_window(0, (8,))]
    assert len({tuple(draw.tolist()) for draw in draws}) == len(draws)


def test_no_global_generator_is_touched():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    next(NoiseSource(5).motion(1, (4,)))
    NoiseSource(5).for_window(0, (4,))
    assert torch.equal(torch.get_rng_state(), before)
