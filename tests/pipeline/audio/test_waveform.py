"""Sounds of every kind, and files that are none."""

import math

import av
import numpy as np
import pytest
import soundfile
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from multitalk_pack.pipeline.audio.waveform import (
    SAMPLE_RATE_HZ,
    Sound,
    check,
    fit_length,
    loudness_lufs,
    normalize_loudness,
    resample,
    to_mono_16k,
)
from multitalk_pack.pipeline.errors import AudioError
from multitalk_pack.pipeline.media.sound import read_sound
from support.media import hum, write_sound, write_video

LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 7: "7.0", 8: "7.1"}
LOSSLESS = [("wav", "pcm_s16le"), ("wav", "pcm_f32le"), ("flac", "flac")]
LOSSY = [("mp3", "mp3"), ("ogg", "libopus"), ("m4a", "aac"), ("mp4", "aac")]


@pytest.mark.parametrize(("suffix", "codec"), LOSSLESS)
@pytest.mark.parametrize("num_channels", LAYOUTS)
def test_lossless_files_come_back_in_their_rate_and_channels(tmp_path, suffix, codec, num_channels):
    sound = hum(0.2, 48000, num_channels)
    path = write_sound(tmp_path / f"hum.{suffix}", sound, codec, LAYOUTS[num_channels])
    got = read_sound(path)
    assert (got.rate_hz, got.num_channels) == (48000, num_channels)
    assert torch.allclose(got.samples, sound.samples, atol=2**-15)


@pytest.mark.parametrize(("suffix", "codec"), LOSSY)
def test_lossy_files_come_back_without_delay(tmp_path, suffix, codec):
    sound = hum(0.6, 48000, 2)
    assert_same_without_delay(read_sound(write_sound(tmp_path / f"hum.{suffix}", sound, codec, "stereo")), sound)


def test_vorbis_comes_back_without_delay(tmp_path):
    sound = hum(0.6, 48000, 2)
    soundfile.write(tmp_path / "hum.ogg", sound.samples.T.numpy(), sound.rate_hz, format="OGG", subtype="VORBIS")
    assert_same_without_delay(read_sound(tmp_path / "hum.ogg"), sound)


def assert_same_without_delay(got, sound):
    assert (got.rate_hz, got.num_channels) == (sound.rate_hz, sound.num_channels)
    assert abs(got.duration_s - sound.duration_s) < 0.04
    got = fit_length(got.samples, sound.samples.shape[-1])
    assert torch.nn.functional.cosine_similarity(got, sound.samples).min() > 0.99  # 0.4 ms late would be less


@pytest.mark.parametrize("rate_hz", [8000, 11025, 22050, 44100, 96000, 192000])
def test_every_rate_becomes_16_khz_and_keeps_its_pitch(tmp_path, rate_hz):
    path = write_sound(tmp_path / "hum.wav", hum(1, rate_hz, 2), "pcm_s16le", "stereo")
    mono = to_mono_16k(read_sound(path))
    assert mono.shape == (SAMPLE_RATE_HZ,)
    expected = hum(1, SAMPLE_RATE_HZ, 2).samples.mean(dim=0)
    assert (mono - expected)[1000:-1000].abs().max() < 2e-3


def test_resampling_is_soxrs_high_quality():
    samples = torch.rand(2, 3001) - 0.5
    resampled = resample(samples, 44100, 16000)
    expected = torch.from_numpy(soxr.resample(samples.T.numpy(), 44100, 16000, quality="HQ").T.copy())
    assert torch.allclose(resampled[:, : expected.shape[1]], expected, atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 5000), st.integers(8000, 192000), st.integers(1, 8))
def test_any_sound_becomes_mono_of_the_same_duration(num_samples, rate_hz, num_channels):
    mono = to_mono_16k(Sound(torch.rand(num_channels, num_samples) - 0.5, rate_hz))
    assert mono.shape == (math.ceil(num_samples * SAMPLE_RATE_HZ / rate_hz),)
    assert mono.isfinite().all()


def test_a_video_file_is_a_sound_and_starts_with_its_picture(tmp_path):
    sound = hum(0.4, 48000, 1)
    got = read_sound(write_video(tmp_path / "late.mp4", num_frames=20, fps=25, sound=sound, sound_start_s=0.2))
    assert got.duration_s == pytest.approx(0.6, abs=0.03)
    assert got.samples[:, : int(0.19 * 48000)].abs().max() < 1e-3
    assert got.samples[:, int(0.22 * 48000) :].abs().max() > 0.2


def test_a_damaged_file_is_heard_as_far_as_it_goes(tmp_path):
    path = write_sound(tmp_path / "cut.mp3", hum(1, 44100, 1), "mp3", "mono")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + b"\0garbage" * 200)
    assert 0.3 < read_sound(path).duration_s < 0.7


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.wav", None, "There is no file"),
        ("empty.wav", b"", "cannot be read as audio"),
        ("text.wav", b"I only pretend to be a sound.\n" * 50, "cannot be read as audio"),
        ("text.mp3", b"I only pretend to be a sound.\n" * 50, "cannot be read as audio|without a single sample"),
    ],
)
def test_what_is_no_sound_is_refused_in_one_sentence(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AudioError, match=message):
        read_sound(path)


def test_a_folder_and_an_image_are_refused(tmp_path):
    with pytest.raises(AudioError, match="is a folder, not a file"):
        read_sound(tmp_path)
    av.VideoFrame.from_ndarray(np.zeros((8, 8, 3), np.uint8), "rgb24").to_image().save(tmp_path / "image.png")
    with pytest.raises(AudioError, match="holds no audio"):
        read_sound(tmp_path / "image.png")


def test_a_file_of_no_length_is_refused(tmp_path):
    soundfile.write(tmp_path / "none.wav", np.zeros((0, 1)), 16000)
    with pytest.raises(AudioError, match=r"without a single sample|cannot be read as audio"):
        read_sound(tmp_path / "none.wav")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused(tmp_path, bad):
    sound = hum(0.1, 16000, 1)
    sound.samples[0, 800] = bad
    with pytest.raises(AudioError, match="NaN or infinite"):
        check(sound)
    with pytest.raises(AudioError, match=r"bad\.wav holds NaN"):
        read_sound(write_sound(tmp_path / "bad.wav", sound, "pcm_f32le", "mono"))


@pytest.mark.parametrize("shape", [(1, 0), (0, 10), (10,), (1, 1, 10)])
def test_misshapen_sounds_are_refused(shape):
    with pytest.raises(AudioError, match="is empty"):
        check(Sound(torch.zeros(shape), 16000))


def sine(frequency_hz, amplitude, duration_s):
    time = torch.arange(int(duration_s * SAMPLE_RATE_HZ), dtype=torch.float64) / SAMPLE_RATE_HZ
    return (amplitude * torch.sin(2 * math.pi * frequency_hz * time)).float()


def test_loudness_is_that_of_the_standard():
    assert loudness_lufs(sine(1000, 0.1, 3)) == pytest.approx(-23.0767, abs=1e-3)
    assert loudness_lufs(sine(200, 0.5, 3)) == pytest.approx(-10.0288, abs=1e-3)
    assert loudness_lufs(torch.zeros(16000)) == -math.inf


@pytest.mark.parametrize("amplitude", [0.003, 0.1, 1.0])
def test_loud_and_quiet_speech_become_one_loudness(amplitude):
    assert loudness_lufs(normalize_loudness(sine(440, amplitude, 1))) == pytest.approx(-23, abs=1e-3)


@pytest.mark.parametrize("mono", [torch.zeros(16000), sine(440, 0.5, 0.1), torch.zeros(0), sine(440, 1e-6, 1)])
def test_what_cannot_be_measured_keeps_its_loudness(mono):
    assert torch.equal(normalize_loudness(mono), mono)
