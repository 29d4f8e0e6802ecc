import pytest
import torch
from multitalk_pack.pipeline.postprocess.color import FLASHTALK_DIGITS, match_colors
from support.golden import Golden

GOLDEN, FLASHTALK = Golden("color"), Golden("flashtalk_color")


@pytest.mark.parametrize("case", GOLDEN.cases)
def test_colors_are_matched_as_published(case):
    matched = match_colors(GOLDEN["in.source"][0], GOLDEN["in.reference"][0, :, 0], GOLDEN.cases[case]["strength"])
    GOLDEN.assert_close(matched[None], f"out.{case}")


@pytest.mark.parametrize("case", sorted(set(FLASHTALK.cases) - {"dark"}))
def test_colors_inside_rgb_are_matched_as_in_flashtalk(case):
    """It keeps a negative Z, which only dark, strongly coloured pixels outside RGB have."""
    reference = FLASHTALK["in.reference"][0, :, 0]
    strength = FLASHTALK.cases[case]["strength"]
    matched = match_colors(FLASHTALK["in.source"][0], reference, strength, digits=FLASHTALK_DIGITS)
    FLASHTALK.assert_close(matched[None], f"out.{case}")


def test_frames_are_matched_one_by_one_however_many_there_are():
    frames, reference = torch.rand(3, 19, 6, 5) * 2 - 1, torch.rand(3, 6, 5) * 2 - 1
    matched = match_colors(frames, reference, 1.0)
    alone = torch.cat([match_colors(frames[:, [index]], reference, 1.0) for index in range(19)], dim=1)
    torch.testing.assert_close(matched, alone)


def test_a_smoothed_match_leaves_the_wall_alone_when_a_mouth_opens():
    """The wall behind a dark spot that comes and goes; matched one by one, it flickers against the spot."""
    wall = torch.rand(3, 1, 16, 16).mul(0.4).expand(-1, 40, -1, -1).clone()
    wall[:, ::4, 4:8, 4:8] = -0.9
    outside = torch.ones(16, 16, dtype=torch.bool)
    outside[4:8, 4:8] = False

    def flicker(smoothing):
        return match_colors(wall, wall[:, 1], 1.0, smoothing)[:, :, outside].diff(dim=1).abs().mean()

    assert flicker(33) < flicker(1) / 5


def test_a_smoothed_match_follows_a_drift_in_its_middle():
    reference = torch.rand(3, 12, 12) * 0.5
    drifting = reference[:, None] + torch.linspace(-0.2, 0.2, 41)[:, None, None]
    matched = match_colors(drifting, reference, 1.0, smoothing=11)
    torch.testing.assert_close(
        matched[:, 10:31].mean(dim=(2, 3)), reference.mean(dim=(1, 2))[:, None].expand(-1, 21), atol=0.02, rtol=0
    )


def test_an_image_matched_to_itself_stays_and_no_strength_touches_nothing():
    frames = torch.rand(3, 2, 8, 8) * 2 - 1
    torch.testing.assert_close(match_colors(frames[:, :1], frames[:, 0], 1.0), frames[:, :1], atol=1e-4, rtol=0)
    assert match_colors(frames, frames[:, 1], 0.0) is frames


@pytest.mark.parametrize("grey", [-1.0, -0.3, 1.0])
def test_a_flat_frame_takes_the_mean_and_not_its_rounding_noise(grey):
    reference = torch.rand(3, 8, 8) * 2 - 1
    matched = match_colors(torch.full((3, 1, 8, 8), grey), reference, 1.0)
    assert matched.isfinite().all() and matched.std(dim=(2, 3)).max() < 1e-3
