"""Sound: read from any file, made mono at 16 kHz, brought to one loudness."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from ..errors import AudioError

logger = logging.getLogger(__name__)

LOCAL = {"protocol_whitelist": "file"}  # a playlist under the name of a sound must not have us call anybody

SAMPLE_RATE_HZ = 16000  # what the speech encoder was trained on
TARGET_LUFS = -23.0
LOUDEST = 1e6  # samples are -1..1, in files that got them wrong -32768..32767; sums of what is beyond overflow
MIN_METERED_S = 0.4  # one block of the loudness meter (ITU-R BS.1770-4)


@dataclass(frozen=True)
class Sound:
    """A sound as it came from the user."""

    samples: Tensor  # channels n, float32, -1..1
    rate_hz: int

    @property
    def num_channels(self) -> int:
        """Channels: 1 is mono, 2 stereo."""
        return self.samples.shape[0]

    @property
    def duration_s(self) -> float:
        """How long it sounds."""
        return self.samples.shape[-1] / self.rate_hz


def read(path: str | Path) -> Sound:
    """
    The first audio stream of a sound or video file, in its own rate and channels.

    It starts where the file starts: sound that sets in later than the picture gets silence in front.

    Raises:
        AudioError: the file cannot be opened, holds no audio, or holds no usable samples.
    """
    path = Path(path)
    try:
        with av.open(str(path), container_options=LOCAL, metadata_errors="replace") as container:
            if not container.streams.audio:
                raise AudioError(f"{path.name} holds no audio. Choose a file with sound.")
            sound = _decode(container, path.name)
    except av.error.FileNotFoundError as error:
        raise AudioError(f"There is no file {path}. Check the path.") from error
    except av.error.FFmpegError as error:
        reason = error.strerror.lower()
        raise AudioError(f"{path.name} cannot be read as audio ({reason}). Convert it to WAV or MP3.") from error
    check(sound, path.name)
    return sound


def check(sound: Sound, name: str = "The audio") -> None:
    """Raises AudioError for a sound that nothing can be made of: misshapen, empty, NaN or infinite."""
    shape = tuple(sound.samples.shape)
    if sound.samples.ndim != 2 or 0 in shape:
        raise AudioError(f"{name} is empty: its shape (channels, samples) is {shape}. Choose audio that sounds.")
    if sound.rate_hz <= 0:
        raise AudioError(f"{name} has a sample rate of {sound.rate_hz} Hz. It must be above 0.")
    if not sound.samples.is_floating_point():
        raise AudioError(f"{name} has samples of {sound.samples.dtype}. They must be floating point numbers, -1..1.")
    lowest, highest = sound.samples.aminmax()  # not numbers where a sample is none
    loudest = torch.maximum(-lowest, highest).item()
    if not math.isfinite(loudest):
        raise AudioError(f"{name} holds NaN or infinite samples. Export it again, for example as a 16-bit WAV.")
    if loudest > LOUDEST:
        raise AudioError(f"{name} reaches {loudest:.3g}, and sound is -1..1. Export it again, as a 16-bit WAV.")


def resample(samples: Tensor, from_hz: int, to_hz: int) -> Tensor:
    """`... n` to another rate, `ceil(n to_hz / from_hz)` samples, by soxr's high quality."""
    if from_hz == to_hz:
        return samples
    from librosa import resample as librosa_resample  # here, because it brings scipy and numba: 2 s

    resampled = librosa_resample(samples.float().numpy(), orig_sr=from_hz, target_sr=to_hz, res_type="soxr_hq")
    return torch.from_numpy(resampled)


def fit_length(samples: Tensor, num_samples: int) -> Tensor:
    """`... n` cut, or continued with silence, to `... num_samples`."""
    missing = max(0, num_samples - samples.shape[-1])
    return torch.nn.functional.pad(samples[..., :num_samples], (0, missing))


def to_mono_16k(sound: Sound) -> Tensor:
    """The mean of the channels at 16 kHz, `n` float32."""
    check(sound)
    return resample(sound.samples.float().mean(dim=0), sound.rate_hz, SAMPLE_RATE_HZ)


def loudness_lufs(mono: Tensor) -> float:
    """Integrated loudness of 16 kHz audio of at least 0.4 s (ITU-R BS.1770-4); -inf for silence."""
    from pyloudnorm import Meter  # here, because it brings scipy.signal: 0.6 s

    return float(Meter(SAMPLE_RATE_HZ).integrated_loudness(mono.double().numpy()))


def normalize_loudness(mono: Tensor, target_lufs: float = TARGET_LUFS) -> Tensor:
    """
    `mono` (`n`, 16 kHz) with one gain so that it is as loud as `target_lufs`, peaks not limited.

    What cannot be measured is left as it is: less than 0.4 s, and silence.
    """
    if mono.shape[-1] < MIN_METERED_S * SAMPLE_RATE_HZ:
        logger.info("Audio of less than %g s keeps its loudness: it is too short to be measured.", MIN_METERED_S)
        return mono
    loudness = loudness_lufs(mono)
    if abs(loudness) > 100:
        logger.info("Audio keeps its loudness: it is silent (%g LUFS).", loudness)
        return mono
    gain = 10 ** ((target_lufs - loudness) / 20)
    return (mono.double() * gain).float()


def _decode(container: av.container.InputContainer, name: str) -> Sound:
    """All samples of the first audio stream."""
    chunks, rate_hz, silence_s = [], 0, 0.0
    for frame in _float_frames(container, name):
        if not chunks:
            rate_hz = frame.sample_rate
            silence_s = _behind_picture_s(container, frame)
        chunks.append(frame.to_ndarray().reshape(-1, frame.layout.nb_channels))
    if not chunks:
        raise AudioError(f"{name} holds an audio track without a single sample. Choose audio that sounds.")
    silence = np.zeros((round(silence_s * rate_hz), chunks[0].shape[1]), np.float32)
    return Sound(torch.from_numpy(np.concatenate([silence, *chunks])).T.contiguous(), rate_hz)


def _behind_picture_s(container: av.container.InputContainer, first: av.AudioFrame) -> float:
    """Seconds between the start of the picture, where there is one, and the first sound."""
    if not container.streams.video:
        return 0.0  # what a file of sound alone says here is its codec's delay
    picture = container.streams.video[0]
    picture_s = float((picture.start_time or 0) * picture.time_base)
    return max(0.0, (first.time or 0.0) - picture_s)


def _float_frames(container: av.container.InputContainer, name: str) -> Iterator[av.AudioFrame]:
    """Decoded frames, as interleaved float32; a damaged packet is skipped, as players do."""
    to_float = av.AudioResampler(format="flt")  # interleaved: PyAV 18 miscounts the planes of 8 channels
    damaged = 0
    for packet in container.demux(container.streams.audio[0]):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            damaged += 1
            continue
        for frame in frames:
            yield from to_float.resample(frame)
    yield from to_float.resample(None)
    if damaged:
        logger.info("%s: %d damaged audio packets were skipped.", name, damaged)
