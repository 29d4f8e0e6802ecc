"""The time left of a run, by its speed so far."""

import pytest
from multitalk_pack.pipeline.host import Progress, RemainingTime, format_duration


class Clock:
    def __init__(self):
        self.time_s = 100.0

    def __call__(self):
        return self.time_s


def test_what_is_left_follows_from_what_is_done():
    now = Clock()
    remaining = RemainingTime(now)
    assert remaining.left_s(0.0) is None
    now.time_s += 30
    assert remaining.left_s(0.25) == pytest.approx(90)
    now.time_s += 90
    assert remaining.left_s(1.0) == 0


def test_a_run_that_goes_on_from_the_middle_is_not_taken_for_a_fast_one():
    now = Clock()
    remaining = RemainingTime(now)
    remaining.left_s(0.5)
    now.time_s += 10
    assert remaining.left_s(0.6) == pytest.approx(40)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (36000, "10.0 h")]
)
def test_durations_have_the_unit_that_people_use(seconds, text):
    assert format_duration(seconds) == text


def test_progress_is_one_line():
    line = Progress("sampling", 0.3, window=2, num_windows=5, step=3, num_steps=40).describe(600.0)
    assert line == "sampling, window 2 of 5, step 3 of 40, about 10 min left"
    assert Progress("audio", 0.0).describe(None) == "audio"
    assert Progress("done", 1.0, window=1, num_windows=1).describe(0.0) == "done, window 1 of 1"
