"""Waveforms: their ranges, resampling, the mix to mono, and loudness; in pieces, so that long sounds are held once."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import AudioError

logger = logging.getLogger(__name__)

SAMPLE_RATE_HZ = 16000  # of the speech encoder
RATES_HZ = (1000, 1_000_000)
PIECE = 2**18  # samples that are worked on at once
LOUDEST = 32.0  # samples are -1..1; recorders of floating point go a little beyond
INTEGER_PEAKS = (2**15, 2**23, 2**31)  # of 16, 24 and 32 bits
QUIETEST_INTEGERS = 2**8  # a peak of 16 bits at -42 dB; between it and `LOUDEST` nobody can say what is meant
CANCELLED = 0.1  # -20 dB: a mean of channels so far below the loudest of them has lost the voice
CANCELLED_SHARE = 0.1  # of a sound's energy, in blocks that have lost the voice, is a fault of the recording
LFE_HZ = 200  # what an LFE channel holds lies below, most of a voice above
CANCELLED_BLOCK = 2**14  # samples, about 0.3 s

TARGET_LUFS = -23.0
SILENT = 1e-4  # -80 dB: a peak below it is no sound
BLOCK_S = 0.4  # of the loudness meter, which measures nothing shorter
BLOCK_HOP = 0.25  # of a block
MAX_LIMITINGS = 30
OFFSET_SHARE = 0.2  # of a sound's standard deviation: a mean beyond it is an offset of the recorder
OFFSET_HZ = 20

# ITU-R BS.775 to mono, without the LFE channel: fronts, centre, LFE, surrounds. Other numbers of channels: their mean.
DOWNMIX = {6: (0.7071, 0.7071, 1, 0, 0.5, 0.5), 8: (0.7071, 0.7071, 1, 0, 0.5, 0.5, 0.5, 0.5)}


@dataclass(frozen=True)
class Sound:
    """A sound as it came from the user."""

    samples: Tensor  # channels n, float32, -1..1
    rate_hz: int
    source_s: float | None = None  # length of a file whose beginning alone was read

    @property
    def num_channels(self) -> int:
        """Channels: 1 is mono, 2 stereo."""
        return self.samples.shape[0]

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.samples.shape[-1] / self.rate_hz

    @property
    def full_duration_s(self) -> float:
        """Length in seconds with what was not read."""
        return self.duration_s if self.source_s is None else max(self.duration_s, self.source_s)

    def first(self, duration_s: float) -> Sound:
        """The beginning, of at most `duration_s`; a view."""
        num_samples = min(self.samples.shape[-1], math.ceil(duration_s * self.rate_hz))
        return Sound(self.samples[..., :num_samples], self.rate_hz)


def check(sound: Sound, name: str = "The audio") -> None:
    """Raises AudioError for a sound that cannot be used: misshapen, empty, of an impossible rate, or not in -1..1."""
    shape = tuple(sound.samples.shape)
    if sound.samples.ndim != 2 or 0 in shape:
        raise AudioError(f"{name} is empty: its shape (channels, samples) is {shape}. Choose audio that sounds.")
    check_rate(sound.rate_hz, name)
    if not sound.samples.is_floating_point():
        raise AudioError(f"{name} has samples of {sound.samples.dtype}. They must be floating point numbers, -1..1.")
    peak = peak_of(sound.samples)
    if not math.isfinite(peak):
        raise AudioError(f"{name} holds NaN or infinite samples. Export it again, for example as a 16-bit WAV.")
    if peak > LOUDEST:
        raise AudioError(f"{name} reaches {peak:.3g}, and sound is -1..1. Export it again, as a 16-bit WAV.")


def check_rate(rate_hz: float, name: str = "The audio") -> None:
    """Raises AudioError for a rate that no sound has."""
    if not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
        raise AudioError(f"{name} has a sample rate of {rate_hz} Hz. It must be in {RATES_HZ[0]}..{RATES_HZ[1]}.")


def peak_of(samples: Tensor) -> float:
    """The largest magnitude, NaN where a sample is none; 0 where there are no samples."""
    if not samples.numel():
        return 0.0
    edges = [edge for piece in samples.split(PIECE, dim=-1) for edge in piece.aminmax()]
    return torch.stack(edges).abs().max().item()


def to_float(samples: Tensor, name: str = "The audio") -> Tensor:
    """Samples as float32 in -1..1, integers by their type; floats of the range of integers, by that range.

    What is neither in the range of sound nor in that of integers is left for `check` to refuse.

    Raises:
        AudioError: they are complex or truth values.
    """
    if samples.is_complex() or samples.dtype == torch.bool:
        raise AudioError(f"{name} has samples of {samples.dtype}. They must be floating point numbers, -1..1.")
    if not samples.is_floating_point():
        offset = 0 if samples.dtype.is_signed else 1
        return samples.float() / 2 ** (8 * samples.element_size() - 1) - offset
    samples = samples.float()
    peak = peak_of(samples)
    scale = next((scale for scale in INTEGER_PEAKS if QUIETEST_INTEGERS <= peak <= scale), 1)
    if scale > 1:
        logger.warning("%s reaches %.5g, as integers do: it is divided by %d.", name, peak, scale)
    return samples if scale == 1 else samples / scale


def within_full_scale(sound: Sound, name: str) -> Sound:
    """`sound`, turned down as a whole where it goes beyond full scale: a file of integers or AAC would clip it."""
    peak = peak_of(sound.samples)
    if peak <= 1:
        return sound
    logger.warning("%s reaches %.3g, and full scale is 1: it is turned down.", name, peak)
    return Sound(sound.samples / peak, sound.rate_hz)


def resample(samples: Tensor, from_hz: int, to_hz: int) -> Tensor:
    """`... n` to another rate, `ceil(n to_hz / from_hz)` samples, by soxr's high quality."""
    if from_hz == to_hz or not samples.shape[-1]:
        return samples
    channels = samples.reshape(-1, samples.shape[-1])
    num_channels, num_samples = channels.shape
    pieces = (channels[:, start : start + PIECE] for start in range(0, num_samples, PIECE))
    return _resample(pieces, num_channels, num_samples, from_hz, to_hz).reshape(*samples.shape[:-1], -1)


def fit_length(samples: Tensor, num_samples: int) -> Tensor:
    """`... n` cut, a view, or continued with silence to `... num_samples`."""
    missing = num_samples - samples.shape[-1]
    if missing <= 0:
        return samples[..., :num_samples]
    return torch.nn.functional.pad(samples, (0, missing))


def expand_channels(samples: Tensor, num_channels: int) -> Tensor:
    """`c n` in more channels: mono from the front pair, everything else from where it was."""
    if samples.shape[0] == num_channels:
        return samples
    if samples.shape[0] == 1:
        samples = samples.expand(2, -1)
    return torch.nn.functional.pad(samples, (0, 0, 0, num_channels - samples.shape[0]))


def to_mono(sound: Sound) -> Sound:
    """One channel: centre-weighted for 5.1 and 7.1 (6 and 8 channels), else the mean.

    Where the channels cancel each other, throughout or for a while, as those of a microphone that was wired the wrong
    way do, it is the loudest of them.
    """
    if sound.num_channels == 1:
        return sound
    mono = torch.empty(1, sound.samples.shape[-1])
    for start, piece in zip(range(0, mono.shape[-1], PIECE), _mono_pieces(sound), strict=True):
        mono[0, start : start + PIECE] = piece
    return Sound(mono, sound.rate_hz)


def to_mono_16k(sound: Sound) -> Tensor:
    """`to_mono` at 16 kHz, `n` float32."""
    check(sound)
    if sound.rate_hz == SAMPLE_RATE_HZ:
        return to_mono(sound).samples[0].float()
    pieces = (piece[None] for piece in _mono_pieces(sound))
    return _resample(pieces, 1, sound.samples.shape[-1], sound.rate_hz, SAMPLE_RATE_HZ)[0]


def loudness_lufs(mono: Tensor) -> float:
    """Integrated loudness of 16 kHz audio of at least 0.4 s (ITU-R BS.1770-4); -inf for silence.

    The mean power of 0.4 s blocks, every 0.1 s, that are above -70 LUFS and above their own mean less 10 dB. It is
    pyloudnorm's, to the bit, in constant memory.
    """
    powers = _block_powers(mono)
    loudness = _lufs(powers)
    gated = powers[loudness >= -70]
    if not len(gated):
        return -math.inf
    threshold = _lufs(np.mean(gated)) - 10
    return float(_lufs(np.mean(powers[(loudness > threshold) & (loudness > -70)])))


def voice_loudness_lufs(mono: Tensor) -> float | None:
    """Loudness of a voice (`n`, 16 kHz), of one below the meter's gate too; None for silence and less than 0.4 s."""
    peak = peak_of(mono)
    if mono.shape[-1] < BLOCK_S * SAMPLE_RATE_HZ or peak < SILENT:
        return None
    loudness = loudness_lufs(mono)
    if math.isfinite(loudness):
        return loudness
    loudness = loudness_lufs(mono / peak) + 20 * math.log10(peak)
    return loudness if math.isfinite(loudness) else None


def normalize_loudness(mono: Tensor, target_lufs: float = TARGET_LUFS) -> Tensor:
    """
    `mono` (`n`, 16 kHz) with one gain so that it is as loud as `target_lufs`, its peaks limited to full scale.

    Where peaks are limited they no longer count as loudness: a click does not leave the voice behind it quiet. What
    cannot be measured is left as it is: less than 0.4 s, and silence.
    """
    gain = 1.0
    for _ in range(MAX_LIMITINGS):
        loudness = voice_loudness_lufs(mono)
        if loudness is None:
            logger.info("Audio keeps its loudness: it is silent, or of less than %g s.", BLOCK_S)
            return mono
        gain = 10 ** ((target_lufs - loudness) / 20)
        if peak_of(mono) * gain <= 1:
            break
        mono = mono.clamp(-1 / gain, 1 / gain)
    return _scaled(mono, gain)


def remove_offset(mono: Tensor) -> Tensor:
    """`mono` (`n`, 16 kHz) without the constant offset of a bad recorder, where there is one.

    It is a high-pass at 20 Hz, below every voice, so that an offset may begin and end within the sound.
    """
    if not mono.numel() or abs(mono.mean(dtype=torch.float64)) <= OFFSET_SHARE * mono.std(correction=0):
        return mono
    from scipy.signal import butter, sosfilt, sosfilt_zi  # here, because it takes 0.6 s

    sections = butter(2, OFFSET_HZ, "highpass", fs=SAMPLE_RATE_HZ, output="sos")
    state = sosfilt_zi(sections) * mono[0].item()
    filtered = torch.empty_like(mono)
    for start in range(0, len(mono), PIECE):
        piece, state = sosfilt(sections, mono[start : start + PIECE].double().numpy(), zi=state)
        filtered[start : start + PIECE] = torch.from_numpy(piece)
    return filtered


def _mono_pieces(sound: Sound) -> Iterator[Tensor]:
    """The mix to one channel, piece by piece, `PIECE` samples each but for the last."""
    samples, channel = sound.samples, _only_voice(sound)
    weights = torch.tensor(DOWNMIX.get(len(samples), ()))[:, None]
    for start in range(0, samples.shape[-1], PIECE):
        piece = samples[:, start : start + PIECE].float()
        yield piece[channel] if channel is not None else _mix_piece(piece, weights)


def _mix_piece(piece: Tensor, weights: Tensor) -> Tensor:
    return (weights * piece).sum(dim=0) / weights.sum() if len(weights) else piece.mean(dim=0)


def _only_voice(sound: Sound) -> int | None:
    """The loudest channel, where the mix to mono loses it; else None."""
    samples, rate_hz = sound.samples, sound.rate_hz
    if len(samples) == 1:
        return 0
    weights = torch.tensor(DOWNMIX.get(len(samples), ()))[:, None]
    has_weight = weights[:, 0] > 0 if len(weights) else torch.ones(len(samples), dtype=torch.bool)
    powers, power, cancelled = torch.zeros(len(samples), dtype=torch.float64), 0.0, 0.0
    slopes = torch.zeros_like(powers)  # of a tone: its power times (2 pi f / rate)^2
    for piece in samples.split(CANCELLED_BLOCK, dim=-1):
        piece_powers = piece.float().square().sum(dim=1)
        loudest = (piece_powers * has_weight).max().item()
        mixed = _mix_piece(piece.float(), weights).square().sum().item()
        powers, power = powers + piece_powers, power + mixed
        slopes[~has_weight] += piece[~has_weight].float().diff(dim=1).square().sum(dim=1)
        cancelled += loudest if mixed < CANCELLED**2 * loudest else 0
    is_voice = slopes > (2 * math.pi * LFE_HZ / rate_hz) ** 2 * powers  # of six microphones the fourth is no LFE
    if (powers * (has_weight | is_voice)).any():
        powers *= has_weight | is_voice
    loudest = powers.max().item()
    is_lost = power < CANCELLED**2 * loudest or cancelled > CANCELLED_SHARE * loudest
    return int(powers.argmax()) if is_lost else None


def _resample(pieces: Iterator[Tensor], num_channels: int, num_samples: int, from_hz: int, to_hz: int) -> Tensor:
    """Pieces `c n` of a sound of `num_samples` at another rate: `c m`."""
    from soxr import ResampleStream

    stream = ResampleStream(from_hz, to_hz, num_channels, dtype="float32", quality="HQ")
    resampled = torch.zeros(num_channels, math.ceil(num_samples * to_hz / from_hz))
    position, remaining = 0, num_samples
    for piece in pieces:
        remaining -= piece.shape[-1]
        part = stream.resample_chunk(piece.float().T.contiguous().numpy(), last=not remaining)
        part = torch.from_numpy(part)[: resampled.shape[-1] - position].T
        resampled[:, position : position + part.shape[-1]] = part
        position += part.shape[-1]
    return resampled


def _block_powers(mono: Tensor) -> np.ndarray:
    """The K-weighted mean square of each of the meter's blocks."""
    num_blocks = int(np.round((len(mono) / SAMPLE_RATE_HZ - BLOCK_S) / (BLOCK_S * BLOCK_HOP)) + 1)
    powers, block = np.zeros(num_blocks), 0
    buffer, offset = np.zeros(0), 0  # `offset` is the number of the buffer's first sample
    for piece in _k_weighted(mono):
        buffer = np.concatenate((buffer, piece))
        while block < num_blocks:
            start, end = (int(BLOCK_S * (block * BLOCK_HOP + edge) * SAMPLE_RATE_HZ) for edge in (0, 1))
            if end > offset + len(buffer) and offset + len(buffer) < len(mono):
                buffer, offset = buffer[start - offset :], start
                break
            power = np.sum(np.square(buffer[start - offset : end - offset]))
            powers[block] = (1.0 / (BLOCK_S * SAMPLE_RATE_HZ)) * power
            block += 1
    return powers


def _k_weighted(mono: Tensor) -> Iterator[np.ndarray]:
    """`mono` through the meter's filters, float64, piece by piece."""
    from pyloudnorm import IIRfilter  # here, because it brings scipy.signal: 0.6 s
    from scipy.signal import lfilter

    shelf = IIRfilter(4.0, 1 / np.sqrt(2), 1500.0, SAMPLE_RATE_HZ, "high_shelf")
    high_pass = IIRfilter(0.0, 0.5, 38.0, SAMPLE_RATE_HZ, "high_pass")
    shelf_state = high_pass_state = np.zeros(2)
    for start in range(0, len(mono), PIECE):
        piece = mono[start : start + PIECE].double().numpy()
        piece, shelf_state = lfilter(shelf.b, shelf.a, piece, zi=shelf_state)
        piece, high_pass_state = lfilter(high_pass.b, high_pass.a, piece, zi=high_pass_state)
        yield piece


def _lufs(power: np.ndarray | np.floating) -> np.ndarray | np.floating:
    with np.errstate(divide="ignore"):
        return -0.691 + 10.0 * np.log10(power)


def _scaled(samples: Tensor, gain: float) -> Tensor:
    """`n` times `gain`, rounded once."""
    scaled = torch.empty(len(samples))
    for start in range(0, len(samples), PIECE):
        scaled[start : start + PIECE] = samples[start : start + PIECE].double() * gain
    return scaled
