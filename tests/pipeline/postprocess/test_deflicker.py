"""What should stand still stands still; what moves goes on moving."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from multitalk_pack.pipeline.config import GenerationConfig
from multitalk_pack.pipeline.errors import ConfigError
from multitalk_pack.pipeline.postprocess.deflicker import GREY_LEVEL, deflicker
from support import run

LEVELS = 3.0


def clip(num_frames, seed=0):
    return torch.rand(3, num_frames, 4, 6, generator=torch.Generator().manual_seed(seed)) - 0.5


def test_a_flicker_below_the_threshold_is_gone():
    still = clip(1)
    flickering = still + 0.49 * LEVELS * GREY_LEVEL * (2 * clip(20, 1))
    assert torch.equal(deflicker(flickering, still[:, 0], LEVELS), still.expand(-1, 20, -1, -1))


def test_a_jump_of_twice_the_threshold_arrives_at_once_in_all_its_channels():
    previous, jump = clip(1)[:, 0], torch.zeros(3, 4, 6)
    jump[0, 1, 2], jump[1, 1, 2] = 2 * LEVELS * GREY_LEVEL, 0.1 * GREY_LEVEL
    output = deflicker((previous + jump)[:, None], previous, LEVELS)
    torch.testing.assert_close(output[:, 0], previous + jump)


@given(st.floats(0.1, 10), st.integers(1, 40), st.integers(0, 99))
def test_nothing_is_ever_further_away_than_twice_the_threshold(threshold, num_frames, seed):
    frames = clip(num_frames, seed) * 0.2
    error = (deflicker(frames, clip(1, seed + 1)[:, 0], threshold) - frames).abs().amax()
    assert error <= 2 * threshold * GREY_LEVEL + 1e-6


def test_without_a_threshold_the_frames_are_those_that_came():
    frames = clip(5)
    assert deflicker(frames, frames[:, 0] + 1, 0.0) is frames


def test_windows_go_on_from_the_last_output():
    """A threshold that nothing passes holds the first frame through all windows."""
    model = run.model(num_layers=1)
    config = run.config(steps=1, color_strength=0.0, deflicker=255.0)
    frames = torch.cat(list(run.generate(model, run.audio(model, 20), run.conditioning(model), config)), 1)
    assert frames.shape[1] == 20
    assert torch.equal(frames, frames[:, :1].expand_as(frames))


@pytest.mark.parametrize("threshold", [-1.0, 256.0])
def test_a_threshold_that_is_no_grey_level_is_refused(threshold):
    with pytest.raises(ConfigError, match=r"deflicker must be in 0\.\.255"):
        GenerationConfig(deflicker=threshold)
