"""Waveforms of every rate, range and loudness."""

import math

import pytest
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from multitalk_pack.pipeline.audio.waveform import (
    SAMPLE_RATE_HZ,
    Sound,
    check,
    loudness_lufs,
    normalize_loudness,
    peak_of,
    remove_offset,
    resample,
    to_float,
    to_mono,
    to_mono_16k,
)
from multitalk_pack.pipeline.errors import AudioError
from pyloudnorm import Meter
from support.media import correlation, hum, sweep


@pytest.mark.parametrize("rate_hz", [8000, 11025, 22050, 44100, 96000, 192000])
def test_every_rate_becomes_16_khz_and_keeps_its_pitch(rate_hz):
    mono = to_mono_16k(hum(1, rate_hz, 2))
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


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused(bad):
    sound = hum(0.1, 16000, 1)
    sound.samples[0, 800] = bad
    with pytest.raises(AudioError, match="NaN or infinite"):
        check(sound)


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


@pytest.mark.parametrize("num_samples", [6400, 6401, 8000, 262_145, 1_234_567])
@pytest.mark.parametrize("amplitude", [1e-4, 0.1, 0.9])
def test_the_meter_is_pyloudnorms_to_the_bit(num_samples, amplitude):
    swell = 0.5 + 0.5 * torch.sin(torch.arange(num_samples) / 9000)
    noise = amplitude * swell * (torch.rand(num_samples, generator=torch.Generator().manual_seed(0)) - 0.5)
    assert loudness_lufs(noise) == Meter(SAMPLE_RATE_HZ).integrated_loudness(noise.double().numpy())


@pytest.mark.parametrize("level_db", [-48, -50, -60, -70])
def test_a_voice_below_the_meters_gate_becomes_as_loud_as_any(level_db):
    voice = sweep(2, SAMPLE_RATE_HZ).samples[0]
    quiet = normalize_loudness(voice * 10 ** (level_db / 20))
    assert torch.allclose(quiet, normalize_loudness(voice), atol=1e-4)


@pytest.mark.parametrize("times_s", [(0.5,), (0.2, 0.9, 1.4, 1.7)])
def test_clicks_are_limited_and_do_not_leave_the_voice_quiet(times_s):
    voice = sweep(2, SAMPLE_RATE_HZ).samples[0]
    clicked = voice * 10 ** (-30 / 20)
    for time_s in times_s:
        start = round(time_s * SAMPLE_RATE_HZ)
        clicked[start : start + 40] = 0.9  # 2.5 ms
    result, expected = normalize_loudness(clicked), normalize_loudness(voice)
    assert peak_of(result) <= 1
    assert (result / expected).nanmedian() == pytest.approx(1, abs=0.4)  # without a limit 0.1


def test_peaks_below_full_scale_are_left_to_the_bit():
    voice = sweep(1, SAMPLE_RATE_HZ).samples[0]
    gain = 10 ** ((-23 - loudness_lufs(voice)) / 20)
    assert torch.equal(normalize_loudness(voice), (voice.double() * gain).float())


def test_an_offset_is_removed_wherever_it_begins_and_a_clean_voice_is_left():
    voice = sweep(2, SAMPLE_RATE_HZ).samples[0] * 10 ** (-30 / 20)
    silence = torch.zeros(SAMPLE_RATE_HZ)
    clean, offset = torch.cat((silence, voice, silence)), torch.cat((silence, voice + 0.05, silence))
    assert remove_offset(voice) is voice and remove_offset(clean) is clean
    assert correlation(voice + 0.05, voice) > 0.99 > correlation(offset, clean)
    assert (remove_offset(voice + 0.05) - voice)[1000:].abs().max() < 3e-3
    quarter = SAMPLE_RATE_HZ // 4  # a step needs as long to ebb away at 20 Hz
    assert (remove_offset(offset) - clean)[SAMPLE_RATE_HZ + quarter : 3 * SAMPLE_RATE_HZ].abs().max() < 2e-3


@pytest.mark.parametrize("num_channels", [2, 3, 6, 8, 12])
def test_channels_that_cancel_leave_the_loudest_of_them(num_channels):
    voice = sweep(1, 48000).samples
    samples = torch.zeros(num_channels, voice.shape[1])
    samples[0], samples[1] = 0.9 * voice, -voice
    assert correlation(to_mono(Sound(samples, 48000)).samples, samples[1]) > 0.999
    assert correlation(to_mono_16k(Sound(samples, 48000)), resample(-voice, 48000, SAMPLE_RATE_HZ)) > 0.95


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_channels_that_cancel_for_a_while_leave_the_loudest_of_them(share):
    """As where two takes were joined, and one of them was wired the wrong way."""
    voice = sweep(4, 48000).samples[0]
    samples = torch.stack((0.9 * voice, voice))
    samples[0, -int(share * len(voice)) :] *= -1 / 0.9
    assert torch.equal(to_mono(Sound(samples, 48000)).samples[0], voice)


def test_the_lfe_channel_is_no_voice():
    voice, time = sweep(2, 48000).samples[0], torch.arange(96_000) / 48000
    samples = torch.zeros(6, len(voice))
    samples[2], samples[3] = 0.02 * voice, 0.9 * torch.sin(2 * torch.pi * 40 * time)
    assert correlation(to_mono(Sound(samples, 48000)).samples, voice) > 0.99
    samples[2] = 0  # a recorder with six inputs, of which one is used
    samples[3] = voice
    assert torch.equal(to_mono(Sound(samples, 48000)).samples[0], voice)
    samples += 1e-3 * torch.randn(samples.shape, generator=torch.Generator().manual_seed(0))  # its inputs' noise
    assert correlation(to_mono(Sound(samples, 48000)).samples, voice) > 0.99


def test_channels_that_do_not_cancel_are_averaged_to_the_bit():
    for num_channels in (2, 3, 4, 5, 7, 9):
        samples = torch.rand(num_channels, 70_000) - 0.5
        assert torch.equal(to_mono(Sound(samples, 48000)).samples[0], samples.mean(dim=0))


@pytest.mark.parametrize("num_channels", [6, 8])
def test_the_centre_of_surround_sound_counts_most(num_channels):
    voice = sweep(1, 48000).samples[0]
    samples = 0.3 * torch.randn(num_channels, len(voice), generator=torch.Generator().manual_seed(0))
    samples[2], samples[3] = voice, torch.ones(len(voice))
    mono = to_mono(Sound(samples, 48000)).samples[0]
    weights = torch.tensor([0.7071, 0.7071, 1, 0, *[0.5] * (num_channels - 4)])  # ITU-R BS.775, without the LFE
    assert torch.allclose(mono, (weights[:, None] * samples).sum(0) / weights.sum(), atol=1e-6)
    assert correlation(mono, voice) > correlation(samples[[0, 1, 2, 4, 5]].mean(0), voice) + 0.05


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.uint8, 128), (torch.uint16, 2**15), (torch.int16, 2**15), (torch.int32, 2**31), (torch.float32, 1)],
)
def test_samples_of_any_type_are_brought_to_one_range(dtype, scale):
    samples = sweep(0.1, 8000).samples
    numbers = samples * scale + (0 if dtype.is_signed else scale)
    assert torch.allclose(to_float(numbers.to(dtype)), samples, atol=2 / scale)


@pytest.mark.parametrize("scale", [2**15, 2**23, 2**31])
def test_floats_in_the_range_of_integers_are_scaled_with_a_word(scale, caplog):
    samples = sweep(0.1, 8000).samples
    assert torch.allclose(to_float(samples * scale, "take.wav"), samples)
    assert f"take.wav reaches {peak_of(samples * scale):.5g}" in caplog.text


@pytest.mark.parametrize("peak", [33, 127, 1e12, 3e38])
def test_what_is_no_range_of_sound_is_refused(peak):
    with pytest.raises(AudioError, match=r"sound is -1\.\.1"):
        check(Sound(to_float(torch.full((1, 100), float(peak))), 16000))


@pytest.mark.parametrize("rate_hz", [-5, 0, 100, 2**40, math.nan, math.inf])
def test_rates_that_no_sound_has_are_refused(rate_hz):
    with pytest.raises(AudioError, match=r"It must be in 1000\.\.1000000"):
        check(Sound(torch.zeros(1, 100), rate_hz))
