"""The measure of lip sync on sounds and frames of known truth."""

from __future__ import annotations

import numpy as np
import pytest

from demo.lip_sync import implied_mouth, measure, mouth_openings

RATE_HZ = 16000


def tone(frequencies: tuple[float, ...], seconds: float) -> np.ndarray:
    time = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    return sum(0.1 * np.sin(2 * np.pi * frequency * time) for frequency in frequencies)


def test_silence_shuts_the_mouth():
    assert not implied_mouth(np.zeros(RATE_HZ)).opening.any()


def test_a_hum_below_300_hz_shuts_the_mouth_and_a_high_first_formant_opens_it():
    hum, vowel = tone((150,), 1), tone((800, 1200), 1)
    assert implied_mouth(hum).opening.max() < 0.1
    assert implied_mouth(vowel).opening[5:-5].min() > 0.9


def test_a_high_second_formant_spreads_and_a_low_one_rounds():
    assert implied_mouth(tone((300, 2300), 1)).width[5:-5].min() > 0.5
    assert implied_mouth(tone((300, 900), 1)).width[5:-5].max() < -0.5


def test_there_is_a_value_for_every_video_frame():
    for samples in (640, 1279, 16000, 40000):
        assert len(implied_mouth(np.zeros(samples)).opening) == samples * 25 // RATE_HZ


@pytest.mark.parametrize("lag", [-5, 0, 3])
def test_the_lag_of_late_lips_is_found(lag):
    track = np.random.default_rng(0).normal(size=200)
    sync = measure(np.roll(track, lag), track)
    assert sync.lag == lag
    assert sync.correlation > 0.9


@pytest.mark.parametrize("length", [0, 1, 2, 5, 13])
def test_short_tracks_are_compared_over_half_of_them_at_least(length):
    track = np.random.default_rng(0).normal(size=length)
    sync = measure(track, track)
    assert sync.lag == 0 and sync.correlation == pytest.approx(1 if length > 1 else 0)


def test_a_mouth_that_does_not_move_follows_nothing():
    assert measure(np.ones(50), np.random.default_rng(0).normal(size=50)).correlation == 0


def test_each_face_has_its_own_mouth():
    frames = np.full((10, 64, 128, 3), 200, np.uint8)
    frames[::2, 40:50, 24:40] = 20  # only the left one opens
    left, right = mouth_openings(frames, num_faces=2)
    assert left[0] > left[1] == 0
    assert not right.any()


def test_another_gauge_can_be_given():
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    assert mouth_openings(frames, gauge=lambda face: np.arange(len(face)))[0].tolist() == [0, 1, 2]
