"""The audio path against the published program's numbers."""

import pytest
import torch
from multitalk_pack.pipeline.audio.dialogue import Arrangement, Speech, arrange
from multitalk_pack.pipeline.audio.embeds import AudioEmbeds
from multitalk_pack.pipeline.audio.waveform import SAMPLE_RATE_HZ, Sound
from multitalk_pack.pipeline.generation.windows import CONTEXT
from multitalk_pack.pipeline.models.wav2vec2 import encoder as wav2vec2
from support.golden import Golden
from transformers import Wav2Vec2Config, Wav2Vec2Model

NOT_OF_THE_MODEL = ("feature_extractor", "fps", "transformers", "weight_norm_note")


@pytest.fixture(scope="module")
def prepared():
    return Golden("audio_prep")


@pytest.fixture(scope="module")
def speech():
    return Golden("wav2vec")


@pytest.fixture(scope="module")
def encoder(speech):
    config = {key: value for key, value in speech.config.items() if key not in NOT_OF_THE_MODEL}
    model = Wav2Vec2Model(Wav2Vec2Config(**config))
    model.load_state_dict(speech.state())
    return model


def sound_of(golden, name):
    samples = golden[f"in.{name}_int16"].float() / 2**15
    return Sound(samples[None] if samples.ndim == 1 else samples.T, golden.config["sample_rate"])


def waveform_of(golden, case):
    return golden[f"in.{case}.waveform_int16"].float() / 2**15


@pytest.mark.parametrize("name", ["a", "b", "c", "stereo"])
def test_a_single_speaker_is_prepared_as_published(prepared, name):
    (track,) = arrange([Speech(sound_of(prepared, name))], Arrangement.PARALLEL)
    prepared.assert_close(track, f"out.single_{name}")


def test_two_speakers_in_turn_are_prepared_as_published(prepared):
    tracks = arrange([Speech(sound_of(prepared, name)) for name in "ab"], Arrangement.IN_TURN)
    for person, track in enumerate(tracks, start=1):
        prepared.assert_close(track, f"out.add_ab.person{person}")


def test_two_speakers_together_sum_as_published(prepared):
    tracks = arrange([Speech(sound_of(prepared, name)) for name in "ac"], Arrangement.PARALLEL)
    prepared.assert_close(tracks[0] + tracks[1], "out.para_ac.sum")


def test_a_missing_speaker_is_silent_as_published(prepared):
    b = prepared["out.single_b"]
    first, second = arrange([Speech(None), Speech(sound_of(prepared, "b"))], Arrangement.IN_TURN)
    assert torch.equal(first, torch.zeros(2 * len(b)))
    assert torch.allclose(second, torch.cat([torch.zeros_like(b), b]), atol=1e-6)
    first, second = arrange([Speech(sound_of(prepared, "a")), Speech(None)], Arrangement.PARALLEL)
    assert torch.allclose(first, prepared["out.single_a"], atol=1e-6)
    assert torch.equal(second, torch.zeros_like(first))


def test_speech_features_are_as_published(speech, encoder):
    for case in speech.cases:
        waveform = waveform_of(speech, case)
        num_frames = len(waveform) * speech.config["fps"] // SAMPLE_RATE_HZ
        normalize = speech.config["feature_extractor"]["do_normalize"]
        speech.assert_close(wav2vec2.encode(encoder, waveform, num_frames, normalize), f"out.{case}.embedding")


def test_windows_are_the_published_rows(speech):
    for name in filter(lambda name: name.endswith("_first_frame"), speech.tensors):
        case = name.split(".")[1]
        features = speech[f"out.{case}.embedding"][None]
        windows = speech[name.removesuffix("_first_frame")]
        first, num_frames, num_rows = int(speech[name]), windows.shape[1], features.shape[1]
        missing = first + num_frames - num_rows  # the published program mirrors the end where a clip reaches past it
        mirrored = num_rows - 1 - torch.arange(missing + 3 if missing >= 0 else 0)
        rows = torch.cat([torch.arange(num_rows), mirrored])
        neighbours = torch.arange(first, first + num_frames)[:, None] + CONTEXT
        feature_frames = rows[neighbours.clamp(0, len(rows) - 1)]
        assert torch.equal(AudioEmbeds(features, num_rows).window(feature_frames), windows)
