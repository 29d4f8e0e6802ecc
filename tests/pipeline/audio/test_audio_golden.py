"""The audio path against the published program's numbers."""

import pytest
import torch
from multitalk_pack.pipeline.audio import embeds
from multitalk_pack.pipeline.audio.dialogue import Arrangement, Speech, arrange
from multitalk_pack.pipeline.audio.embeds import AudioEmbeds, encode_stream
from multitalk_pack.pipeline.audio.waveform import SAMPLE_RATE_HZ, Sound
from multitalk_pack.pipeline.config import AudioFeatures
from multitalk_pack.pipeline.generation.windows import CONTEXT, WindowConfig, WindowFit, plan_windows
from multitalk_pack.pipeline.models.wav2vec2 import encoder as wav2vec2
from support.golden import Golden
from transformers import Wav2Vec2Config, Wav2Vec2Model

NOT_OF_THE_MODEL = ("feature_extractor", "fps", "lufs", "transformers", "weight_norm_note")
FLASHTALK = Golden("flashtalk_audio")


@pytest.fixture(scope="module")
def prepared():
    return Golden("audio_prep")


@pytest.fixture(scope="module")
def speech():
    return Golden("wav2vec")


def load_encoder(golden):
    config = {key: value for key, value in golden.config.items() if key not in NOT_OF_THE_MODEL}
    model = Wav2Vec2Model(Wav2Vec2Config(**config))
    missing, unexpected = model.load_state_dict(golden.state(), strict=False)
    assert set(missing) <= {"masked_spec_embed"} and not unexpected  # which only training reads
    return model


@pytest.fixture(scope="module")
def encoder(speech):
    return load_encoder(speech)


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


@pytest.mark.parametrize("case", [case for case, facts in FLASHTALK.cases.items() if facts["mode"] == "stream"])
def test_streamed_windows_have_flashtalk_s_features_of_a_sound_that_starts_with_its_lead(case, monkeypatch):
    """The published windows hear silence in their first motion frames, which are thrown away."""
    facts = FLASHTALK.cases[case]
    monkeypatch.setattr(embeds, "BUFFER_FRAMES", 25 * facts["cached_audio_duration"])
    size, lead = facts["frame_num"], facts["motion_frame"]
    config = WindowConfig(num_frames=size, motion_frames=lead, fit=WindowFit.FIXED, features=AudioFeatures.STREAM)
    windows = plan_windows(facts["windows"] * (size - lead) + lead, config, [1])
    waveform = torch.nn.functional.pad(waveform_of(FLASHTALK, case), (lead * SAMPLE_RATE_HZ // 25, 0))
    frames = [range(window.start, window.start + size) for window in windows]
    rows = encode_stream(load_encoder(FLASHTALK), waveform, frames, normalize=True)
    audio_embeds = AudioEmbeds(rows[None], len(waveform) // 640)
    for clip in facts["kept"]:
        FLASHTALK.assert_close(audio_embeds.window(windows[clip].feature_frames), f"out.{case}.clip{clip}.audio")


def test_flashtalk_s_features_of_a_whole_sound_are_the_published_ones():
    facts, embedding = FLASHTALK.cases["once"], FLASHTALK["out.once.embedding"]
    (track,) = arrange([Speech(Sound(waveform_of(FLASHTALK, "once")[None], SAMPLE_RATE_HZ))], Arrangement.PARALLEL)
    rows = wav2vec2.encode(load_encoder(FLASHTALK), track, len(embedding), normalize=True)
    FLASHTALK.assert_close(rows, "out.once.embedding")
    size, lead = facts["frame_num"], facts["motion_frame"]
    config = WindowConfig(num_frames=size, motion_frames=lead, fit=WindowFit.FIXED)
    windows = plan_windows(facts["windows"] * (size - lead) + lead, config, [len(rows)])
    for clip in facts["kept"]:
        got = AudioEmbeds(rows[None], len(rows)).window(windows[clip].feature_frames)
        FLASHTALK.assert_close(got, f"out.once.clip{clip}.audio")
