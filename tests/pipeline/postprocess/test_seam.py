"""Where two windows meet: nothing jumps, and nothing else changes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from multitalk_pack.pipeline.postprocess.seam import FADE_FRAMES, fade_seam


def clip(num_frames, seed=0):
    return torch.rand(3, num_frames, 4, 6, generator=torch.Generator().manual_seed(seed)) - 0.5


@given(st.integers(2, 40), st.data())
def test_the_jump_is_gone_and_all_frames_beyond_the_fade_are_as_they_were(num_frames, data):
    overlap = data.draw(st.integers(1, num_frames - 1))
    still = clip(1).expand(-1, num_frames, -1, -1)
    last = still[:, 0] + 0.25
    faded = fade_seam(still, last, overlap)
    path = torch.cat(
        (last[:, None], faded[:, overlap:], still[:, :1]), dim=1
    )  # from the window before into the new frames
    count = min(FADE_FRAMES, num_frames - overlap)
    torch.testing.assert_close(path[:, : count + 2].diff(dim=1), torch.full((3, count + 1, 4, 6), -0.25 / (count + 1)))
    assert torch.equal(faded[:, :overlap], still[:, :overlap])
    assert torch.equal(faded[:, overlap + count :], still[:, overlap + count :])


def test_windows_that_agree_are_left_alone():
    frames = clip(33)
    assert torch.equal(fade_seam(frames, frames[:, 24], 25), frames)


@pytest.mark.parametrize(("step", "fades"), [(0.05, True), (0.5, False)])
def test_a_step_too_small_for_motion_is_faded_like_a_jump(step, fades):
    """The motion frames agree with the window before; the new ones are a shade brighter, or have moved."""
    frames = clip(1).mul(0.5).expand(-1, 33, -1, -1).clone()
    frames[:, 25:] += step
    faded = fade_seam(frames, frames[:, 24], 25, threshold=10)
    expected = frames[:, 24] + step / (FADE_FRAMES + 1) if fades else frames[:, 25]
    torch.testing.assert_close(faded[:, 25], expected)
    assert torch.equal(fade_seam(frames, frames[:, 24], 25), frames)


def test_motion_stays_and_colours_stay_in_range():
    frames = 2 * clip(33)
    assert fade_seam(frames, frames[:, 24] + 0.5, 25).amax() <= 1
    faded = fade_seam(0.5 * frames, 0.5 * frames[:, 24] + 0.1, 25)
    motion = faded.diff(dim=1)[:, 25:32] - 0.5 * frames.diff(dim=1)[:, 25:32]
    torch.testing.assert_close(motion, torch.full_like(motion, -0.1 / (FADE_FRAMES + 1)))
