import dataclasses
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from multitalk_pack.pipeline.audio.embeds import BUFFER_FRAMES
from multitalk_pack.pipeline.config import AudioFeatures, Recipe, WindowPlan
from multitalk_pack.pipeline.errors import ConfigError
from multitalk_pack.pipeline.generation.recipes import RECIPES
from multitalk_pack.pipeline.generation.windows import WindowConfig, WindowFit, plan_windows
from support.golden import Golden

MULTITALK, INFINITETALK = Golden("clip_plan"), Golden("infinitetalk_plan")
BOOKKEEPING = [case for case in INFINITETALK.cases if f"out.{case}.result_clip_and_frame" in INFINITETALK]


FLASHTALK = Golden("flashtalk_plan")
FLASHTALK_PLANS = [case for case, facts in FLASHTALK.cases.items() if facts.get("windows") and "mode" in facts]
FULL = WindowConfig(num_frames=81, motion_frames=9, fit=WindowFit.SHORTENED)  # InfiniteTalk's


@st.composite
def configs(draw) -> WindowConfig:
    """Sizes of every fit, the models' own or asked for."""
    fit = draw(st.sampled_from([WindowFit.EQUAL, WindowFit.SHORTENED]))
    if draw(st.booleans()):
        return dataclasses.replace(draw(st.sampled_from([WindowConfig(), FULL])), fit=fit)
    motion = 4 * draw(st.integers(0, 10)) + 1
    return WindowConfig(num_frames=motion + 4 * draw(st.integers(1, 30)), motion_frames=motion, fit=fit)


REQUESTS = st.integers(1, 1500) | st.integers(41, 241)


@given(num_frames=REQUESTS, config=configs())
def test_exactly_the_frames_asked_for_are_kept(num_frames, config):
    windows = plan_windows(num_frames, config, [num_frames + 10])
    frames = [window.start + frame for window in windows for frame in range(window.num_frames)[window.keep]]
    assert frames == list(range(num_frames))


@given(num_frames=REQUESTS, config=configs())
def test_a_window_starts_with_frames_that_the_one_before_has_made(num_frames, config):
    windows = plan_windows(num_frames, config, [num_frames])
    assert windows[0].start == 0 and windows[0].overlap == 0
    for before, window in pairwise(windows):
        assert window.overlap == config.motion_frames <= before.num_frames
        assert window.start == before.start + before.num_frames - window.overlap
        assert len(range(window.num_frames)[window.keep]) > 0  # none is made in vain
    assert all(window.num_frames % 4 == 1 for window in windows)


@given(num_frames=REQUESTS, config=configs(), rows=st.lists(st.integers(1, 1600), min_size=1, max_size=4))
def test_a_frame_hears_its_own_moment_as_far_as_there_are_features(num_frames, config, rows):
    for window in plan_windows(num_frames, config, rows):
        assert window.feature_frames.shape == (len(rows), window.num_frames, 5)
        centre = torch.arange(window.start, window.start + window.num_frames)
        for feature_frames, count in zip(window.feature_frames, rows, strict=True):
            assert torch.equal(feature_frames[:, 2], centre.clamp(max=count - 1))
            assert torch.equal(feature_frames, (centre[:, None] + torch.arange(-2, 3)).clamp(0, count - 1))


@given(num_frames=st.integers(1, 1500))
def test_multitalk_takes_the_fewest_equal_windows_of_at_most_97(num_frames):
    windows = plan_windows(num_frames, WindowConfig(), [num_frames])
    size = windows[0].num_frames
    assert all(window.num_frames == size <= 97 for window in windows)
    assert len(windows) == 1 or num_frames > 97 + (len(windows) - 2) * 72
    assert size + (len(windows) - 1) * (size - 25) - num_frames < 4 * len(windows)  # hardly more than asked for


@pytest.mark.parametrize(
    ("num_frames", "count", "size"),
    [(41, 1, 41), (81, 1, 81), (97, 1, 97), (121, 2, 73), (137, 2, 81), (145, 2, 85), (181, 3, 77), (241, 3, 97)],
)
def test_usual_requests_are_cut_as_the_table_says(num_frames, count, size):
    windows = plan_windows(num_frames, WindowConfig(), [num_frames])
    assert [window.num_frames for window in windows] == [size] * count


@pytest.mark.parametrize(("num_frames", "count", "size"), [(41, 1, 41), (81, 1, 81), (145, 2, 81), (241, 4, 81)])
def test_infinitetalk_keeps_its_trained_length(num_frames, count, size):
    windows = plan_windows(num_frames, FULL, [num_frames])
    assert [window.num_frames for window in windows] == [size] * count


def test_a_network_of_one_length_gets_no_shorter_window():
    fixed = WindowConfig(num_frames=33, motion_frames=5, fit=WindowFit.FIXED)
    assert [window.num_frames for window in plan_windows(10, fixed, [10])] == [33]
    assert len(range(33)[plan_windows(10, fixed, [10])[0].keep]) == 10


@pytest.mark.parametrize("case", FLASHTALK_PLANS)
def test_the_published_flashtalk_plan_is_ours_without_the_frames_that_it_drops(case):
    """It throws the first motion frames away; whole features count from the sound's start, streamed ones after them."""
    facts = FLASHTALK.cases[case]
    size, lead, streams = facts["frame_num"], facts["motion_frame"], facts["mode"] == "stream"
    features = AudioFeatures.STREAM if streams else AudioFeatures.WHOLE
    config = WindowConfig(num_frames=size, motion_frames=lead, fit=WindowFit.FIXED, features=features)
    windows = plan_windows(facts["windows"] * (size - lead) + lead, config, [facts["audio_frames"]])
    rows = numbered(windows, 0)[:, 0]
    if streams:
        buffer = 25 * facts["cached_audio_duration"]
        own = rows - torch.arange(len(windows))[:, None, None] * (size + 2)
        buffer_rows = own + buffer - size - 2
        ends = torch.tensor([window.start + size - lead for window in windows])
        FLASHTALK.assert_close((ends - buffer) * 640, f"out.{case}.buffer_first_sample")
        FLASHTALK.assert_close(buffer_rows, f"out.{case}.buffer_rows")
        rows = buffer_rows + (ends - buffer)[:, None, None]
    FLASHTALK.assert_close(rows, f"out.{case}.heard_audio_frames")
    frames = [[window.index, frame] for window in windows for frame in range(size)[window.keep]][lead:]
    assert frames == FLASHTALK[f"out.{case}.result_clip_and_frame"].tolist()
    assert len(frames) == FLASHTALK[f"out.{case}.total_frames"].item()
    if len(windows) > 1:
        handed_on = [list(range(size))[-window.overlap :] for window in windows[1:]]
        assert handed_on == FLASHTALK[f"out.{case}.motion_frames"].tolist()


def test_a_window_longer_than_the_buffer_cannot_have_features_of_its_own():
    config = WindowConfig(num_frames=201, fit=WindowFit.FIXED, features=AudioFeatures.STREAM)
    with pytest.raises(ConfigError, match=f"reach {BUFFER_FRAMES} frames back, too few for windows of 201"):
        plan_windows(300, config, [300])


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="motion frames"):
        plan_windows(200, WindowConfig(motion_frames=97), [200])
    with pytest.raises(ConfigError, match="at least one frame"):
        plan_windows(0, WindowConfig(), [10])
    with pytest.raises(ConfigError, match="longer than a window"):
        plan_windows(81, WindowConfig(WindowPlan.PUBLISHED, 81), [81])


def published(recipe: Recipe, facts: dict, num_features: list[int]):
    config = WindowConfig(
        WindowPlan.PUBLISHED, facts["frame_num"], facts["motion_frame"], max_frames=facts["max_frames_num"],
        drops_mirrored_tail=RECIPES[recipe].drops_mirrored_tail,
    )  # fmt: skip
    return plan_windows(max(num_features), config, num_features)


def numbered(windows, offset: int) -> torch.Tensor:
    """`clips people frames 5`: the feature rows, with each speaker's offset."""
    people = windows[0].feature_frames.shape[0]
    return torch.stack([window.feature_frames for window in windows]) + offset * torch.arange(people)[:, None, None]


@pytest.mark.parametrize("case", MULTITALK.cases)
def test_the_published_multitalk_plan(case):
    facts = MULTITALK.cases[case]
    windows = published(Recipe.MULTITALK, facts, [facts["audio_frames"]] * facts["people"])
    MULTITALK.assert_close(numbered(windows, 1000), f"out.{case}.window_indices")
    total = sum(len(range(window.num_frames)[window.keep]) for window in windows)
    assert total == MULTITALK[f"out.{case}.total_frames"].item()


@pytest.mark.parametrize("case", BOOKKEEPING)
def test_the_published_infinitetalk_plan(case):
    facts = INFINITETALK.cases[case]
    windows = published(Recipe.INFINITETALK, facts, facts["audio_frames"])
    offset = INFINITETALK.config["person_index_offset"]
    INFINITETALK.assert_close(numbered(windows, offset), f"out.{case}.window_indices")
    frames = [[window.index, frame] for window in windows for frame in range(window.num_frames)[window.keep]]
    assert frames == INFINITETALK[f"out.{case}.result_clip_and_frame"].tolist()
    handed_on = [list(range(window.num_frames))[-after.overlap :] for window, after in pairwise(windows)]
    assert len(handed_on) == facts["clips"] - 1
    if handed_on:
        assert handed_on == INFINITETALK[f"out.{case}.motion_frames"].tolist()
    if f"out.{case}.source_frame" in INFINITETALK:
        source_frames = [min(window.start, facts["source_frames"] - 1) for window in windows]
        assert source_frames == INFINITETALK[f"out.{case}.source_frame"].tolist()
