"""Speech features, as long as the video and a little longer."""

import logging
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from multitalk_pack.pipeline.audio.dialogue import Arrangement, Speech
from multitalk_pack.pipeline.audio.embeds import TAIL_FRAMES, AudioEmbeds, encode_audio, num_frames_of, num_model_frames
from multitalk_pack.pipeline.audio.waveform import Sound, normalize_loudness
from multitalk_pack.pipeline.errors import AudioError, ConfigError
from multitalk_pack.pipeline.models.wav2vec2 import encoder as wav2vec2
from support.media import hum
from support.tiny_audio import tiny_encoder

TOGETHER, IN_TURN = Arrangement.PARALLEL, Arrangement.IN_TURN


@pytest.fixture(scope="module")
def model():
    return tiny_encoder()


@pytest.mark.parametrize("duration_s", [0.1, 0.2, 1, 3.24, 3.25, 59.97])
@pytest.mark.parametrize("fps", [16, 24, 25, 30])
def test_a_video_has_the_frames_of_its_duration(duration_s, fps):
    expected = round(Fraction(str(duration_s)) * fps)
    assert num_frames_of(duration_s, fps) == expected
    assert abs(num_model_frames(expected, fps) / 25 - expected / fps) < 1 / 25
    assert num_model_frames(expected, fps) / 25 >= expected / fps


@given(st.integers(1, 10_000_000), st.sampled_from([8000, 16000, 22050, 44100, 48000, 96000, 192000]))
def test_durations_in_samples_are_rounded_exactly(num_samples, rate_hz):
    assert num_frames_of(num_samples / rate_hz) == round(Fraction(num_samples * 25, rate_hz))


@pytest.mark.parametrize("num_samples", [18560, 36480, 37120, 72320, 72960])
def test_lengths_that_floats_undershoot_are_whole(num_samples):
    assert num_frames_of(num_samples / 16000) == num_samples * 25 // 16000


def test_missing_audio_is_silence_that_was_heard(model):
    sound = hum(0.5, 16000, 1)
    embeds = encode_audio(model, [Speech(sound)], num_frames=25)
    voice = normalize_loudness(sound.samples[0])
    waveform = torch.cat([voice, torch.zeros((25 + TAIL_FRAMES) * 640 - len(voice))])
    assert embeds.num_frames == 25
    assert torch.equal(embeds.features[0], wav2vec2.encode(model, waveform, 25 + TAIL_FRAMES))


def test_audio_longer_than_the_video_is_cut(model):
    sound = hum(1, 16000, 1)
    short = Sound(sound.samples[:, : 5 * 640], 16000)
    cut = encode_audio(model, [Speech(sound)], num_frames=5, normalize_loudness=False)
    assert torch.equal(cut.features, encode_audio(model, [Speech(short)], normalize_loudness=False).features)


@pytest.mark.parametrize(("arrangement", "num_frames"), [(TOGETHER, 20), (IN_TURN, 32)])
def test_without_a_number_of_frames_the_audio_gives_it(model, arrangement, num_frames):
    speeches = [Speech(hum(0.8, 44100, 2)), Speech(hum(0.48, 8000, 1))]
    embeds = encode_audio(model, speeches, arrangement)
    assert (embeds.num_speakers, embeds.num_frames) == (2, num_frames)
    assert embeds.features.shape == (2, num_frames + TAIL_FRAMES, 3, 16)


@pytest.mark.parametrize(("fps", "num_frames"), [(16, 13), (24, 13), (25, 13), (30, 13)])
def test_other_frame_rates_hear_the_same_time(model, fps, num_frames):
    embeds = encode_audio(model, [Speech(hum(0.8, 16000, 1))], num_frames=num_frames, fps=fps)
    assert embeds.num_frames == num_model_frames(num_frames, fps)


def test_lengths_and_rates_that_cannot_be_are_refused(model):
    with pytest.raises(ConfigError, match=r"num_frames must be in 0\.\.360000, got -5"):
        encode_audio(model, [Speech(None)], num_frames=-5)
    with pytest.raises(ConfigError, match=r"fps must be in 1\.\.120, got 0"):
        encode_audio(model, [Speech(None)], num_frames=5, fps=0)


@pytest.mark.parametrize("sound", [hum(0.01, 16000, 1), hum(0.1, 8000, 1), Sound(torch.zeros(2, 16000), 16000)])
def test_short_and_silent_audio_is_no_error(model, sound, caplog):
    with caplog.at_level(logging.INFO):
        embeds = encode_audio(model, [Speech(sound)])
    assert embeds.num_frames >= 1
    assert embeds.features.isfinite().all()
    assert caplog.messages


def test_a_silent_speaker_hears_silence_for_as_long_as_asked(model):
    embeds = encode_audio(model, [Speech(None), Speech(hum(0.4, 16000, 1))], num_frames=10)
    silence = wav2vec2.encode(model, torch.zeros(20 * 640), 20)
    assert torch.equal(embeds.features[0], silence)
    assert encode_audio(model, [Speech(None)], num_frames=3).num_frames == 3


def test_silent_speakers_alone_have_no_length(model):
    with pytest.raises(AudioError, match="a number of frames"):
        encode_audio(model, [Speech(None)])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_no_numbers_are_refused(value):
    with pytest.raises(AudioError, match="Run the audio encoder in float32"):
        AudioEmbeds(torch.full((1, 9, 2, 8), value), 9)


def test_a_window_is_the_rows_that_each_frame_hears():
    embeds = AudioEmbeds(torch.arange(2 * 8.0).view(2, 8, 1, 1), num_frames=6)
    feature_frames = torch.tensor([[0, 0, 0, 1, 2], [3, 4, 5, 6, 7]])
    window = embeds.window(feature_frames)
    assert window.shape == (2, 2, 5, 1, 1)
    assert window[..., 0, 0].tolist() == [feature_frames.tolist(), (feature_frames + 8).tolist()]
    own = embeds.window(torch.stack([feature_frames, feature_frames.flip(0)]))
    assert torch.equal(own[0], window[0])
    assert torch.equal(own[1], window[1].flip(0))
