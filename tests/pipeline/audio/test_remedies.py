"""Faults of recordings, by what the speech encoder makes of them: the features are those of the clean voice."""

import pytest
import torch
from multitalk_pack.pipeline.audio.dialogue import Speech
from multitalk_pack.pipeline.audio.embeds import encode_audio
from multitalk_pack.pipeline.audio.waveform import Sound
from multitalk_pack.pipeline.media.sound import read_sound
from multitalk_pack.pipeline.weights import handles
from support.media import correlation
from support.pack import PACK

WEIGHTS = PACK / "demo" / "weights" / "audio_encoders" / "wav2vec2_demo.safetensors"
RATE_HZ = 16000


@pytest.fixture(scope="module")
def voice():
    return read_sound(PACK / "demo" / "assets" / "drawn_speech.wav", max_duration_s=3).samples


@pytest.fixture(scope="module")
def features_of():
    encoder = handles.audio_encoder(WEIGHTS).model

    def encode(*voices):
        return encode_audio(encoder, [Speech(Sound(voice, RATE_HZ)) for voice in voices]).features

    return encode


def level(voice, decibels):
    return voice * 10 ** (decibels / 20)


def with_clicks(voice, times_s):
    voice = voice.clone()
    for time_s in times_s:
        start = round(time_s * RATE_HZ)
        voice[:, start : start + 40] = 0.9  # 2.5 ms
    return voice


FAULTS = {
    "quiet": (lambda voice: level(voice, -30), 0.999),
    "below the meter's gate": (lambda voice: level(voice, -50), 0.99),
    "far below the meter's gate": (lambda voice: level(voice, -65), 0.99),
    "with an offset": (lambda voice: level(voice, -30) + 0.05, 0.99),
    "with a click": (lambda voice: with_clicks(level(voice, -30), [0.5]), 0.85),
    "with clicks": (lambda voice: with_clicks(level(voice, -30), [0.2, 0.9, 1.4, 2.0]), 0.85),
    "out of phase": (lambda voice: torch.cat((voice, -voice)), 0.95),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_recording_gives_the_features_of_the_voice(features_of, voice, name):
    spoil, threshold = FAULTS[name]
    assert correlation(features_of(spoil(voice)), features_of(voice)) > threshold


@pytest.mark.parametrize("listener", ["crosstalk", "noise", "hiss"])
def test_a_listener_is_silent(features_of, voice, listener):
    noise = torch.randn(voice.shape, generator=torch.Generator().manual_seed(0))
    track = {"crosstalk": level(voice, -40), "noise": level(noise, -66), "hiss": level(noise, -100)}[listener]
    assert torch.equal(features_of(voice, track), features_of(voice, torch.zeros_like(voice)))


def test_a_listener_who_answers_is_heard(features_of, voice):
    answer = torch.cat((level(voice, -40)[:, : 2 * RATE_HZ], level(voice, -6)[:, 2 * RATE_HZ :]), 1)
    _, listener = features_of(voice, answer)
    assert correlation(listener, features_of(answer)[0]) > 0.999
