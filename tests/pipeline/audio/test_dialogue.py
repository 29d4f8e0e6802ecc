"""Who speaks when."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from multitalk_pack.pipeline.audio.dialogue import Arrangement, Speech, arrange, mix_soundtrack
from multitalk_pack.pipeline.audio.waveform import SAMPLE_RATE_HZ, Sound, loudness_lufs
from multitalk_pack.pipeline.errors import AudioError
from support.media import hum

TOGETHER, IN_TURN = Arrangement.PARALLEL, Arrangement.IN_TURN


def noise(duration_s, rate_hz=SAMPLE_RATE_HZ, num_channels=1, amplitude=0.1):
    return Sound(amplitude * (2 * torch.rand(num_channels, round(duration_s * rate_hz)) - 1), rate_hz)


def sounding_span_s(track, rate_hz=SAMPLE_RATE_HZ):
    """From when to when a track is not silent."""
    (samples,) = track.nonzero(as_tuple=True)
    return pytest.approx((samples[0].item() / rate_hz, (samples[-1].item() + 1) / rate_hz), abs=1e-3)


@pytest.mark.parametrize(
    ("arrangement", "spans"),
    [(TOGETHER, [(0, 0.5), (0, 0.8), (0, 0.6)]), (IN_TURN, [(0, 0.5), (0.5, 1.3), (1.3, 1.9)])],
)
def test_three_unequal_speakers_are_padded_to_one_length(arrangement, spans):
    tracks = arrange([Speech(noise(duration_s)) for duration_s in (0.5, 0.8, 0.6)], arrangement)
    assert len({len(track) for track in tracks}) == 1
    assert [(start, end) for start, end in spans] == [sounding_span_s(track) for track in tracks]


@pytest.mark.parametrize("arrangement", Arrangement)
def test_a_given_start_overrides_the_arrangement(arrangement):
    tracks = arrange([Speech(noise(0.5)), Speech(noise(0.5), start_s=0.7), Speech(None)], arrangement)
    assert [sounding_span_s(track) for track in tracks[:2]] == [(0, 0.5), (0.7, 1.2)]
    assert not tracks[2].any()
    assert {len(track) for track in tracks} == {round(1.2 * SAMPLE_RATE_HZ)}


def test_speakers_are_brought_to_one_loudness_each_on_its_own():
    speeches = [Speech(noise(1, amplitude=0.05)), Speech(noise(1, amplitude=0.9))]
    loud = [loudness_lufs(track) for track in arrange(speeches, TOGETHER)]
    assert loud == pytest.approx([-23, -23], abs=0.01)
    untouched = arrange(speeches, TOGETHER, normalize=False)
    assert all(torch.equal(track, speech.sound.samples[0]) for track, speech in zip(untouched, speeches, strict=True))


def test_silent_speakers_alone_have_empty_tracks():
    assert [len(track) for track in arrange([Speech(None), Speech(None)], IN_TURN)] == [0, 0]


def test_digital_silence_stays_silent():
    (track,) = arrange([Speech(Sound(torch.zeros(2, 48000), 48000))], TOGETHER)
    assert torch.equal(track, torch.zeros(SAMPLE_RATE_HZ))


@pytest.mark.parametrize("start_s", [-1, float("nan"), float("inf")])
def test_impossible_starts_are_refused(start_s):
    with pytest.raises(AudioError, match="speaker's start"):
        Speech(None, start_s)


def test_no_speaker_is_refused():
    with pytest.raises(AudioError, match="at least one"):
        arrange([], TOGETHER)


def test_bad_samples_are_refused():
    with pytest.raises(AudioError, match="NaN"):
        arrange([Speech(Sound(torch.tensor([[0.0, float("nan")]]), 16000))], TOGETHER)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 90), st.sampled_from([16, 24, 25, 30, Fraction(30000, 1001)]), st.sampled_from([22050, 48000]))
def test_a_soundtrack_is_untouched_and_no_longer_than_its_video(num_frames, fps, rate_hz):
    sound = noise(1.2, rate_hz, num_channels=2)
    track = mix_soundtrack([Speech(sound)], TOGETHER, num_frames, fps)
    num_samples = min(round(num_frames / Fraction(fps) * rate_hz), sound.samples.shape[-1])
    assert track.rate_hz == rate_hz
    assert torch.equal(track.samples, sound.samples[:, :num_samples])
    assert track.samples.data_ptr() == sound.samples.data_ptr()


def test_one_voice_beside_silent_speakers_is_untouched_but_for_its_place():
    sound = noise(0.5, 44100, num_channels=2)
    track = mix_soundtrack([Speech(None), Speech(sound)], IN_TURN, num_frames=25)
    assert torch.equal(track.samples[:, 22050:], sound.samples)
    assert not track.samples[:, :22050].any()


def test_several_voices_are_mixed_at_the_highest_rate_with_all_channels():
    low, high = hum(0.4, 16000, 1), hum(0.4, 48000, 2)
    track = mix_soundtrack([Speech(low), Speech(high)], IN_TURN, num_frames=20)
    assert (track.rate_hz, track.samples.shape) == (48000, (2, 38400))
    assert torch.equal(track.samples[:, 19200:], high.samples)
    expected = hum(0.4, 48000, 1).samples.expand(2, -1)
    assert (track.samples[:, :19200] - expected).abs().max() < 2e-3


def test_a_mix_is_turned_down_rather_than_clipped():
    loud = Sound(torch.full((1, 16000), 0.8), 16000)
    track = mix_soundtrack([Speech(loud), Speech(loud)], TOGETHER, num_frames=25)
    assert track.samples.max() == 1


def test_a_voice_that_starts_after_the_videos_end_is_left_out_whatever_its_rate():
    first, late = hum(2, 48000, 1), hum(2, 44100, 1)
    track = mix_soundtrack([Speech(first), Speech(late)], IN_TURN, 25)
    assert torch.equal(track.samples, first.samples[:, :48000])
    assert not arrange([Speech(first), Speech(late)], IN_TURN, max_duration_s=1.0)[1].any()


def test_silent_speakers_have_no_soundtrack():
    assert mix_soundtrack([Speech(None)], TOGETHER, num_frames=25) is None
