"""Sound files of any kind, read into one array, in step with their time stamps."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition

from ..audio.waveform import Sound, check, check_rate, expand_channels, to_float
from ..errors import AudioError
from .files import moving_pictures, open_container

logger = logging.getLogger(__name__)

ADVICE = "Convert it to WAV or MP3."
MAX_BYTES = 4 * 10**9  # of samples: 2.9 hours of stereo at 48 kHz
GAP_S = 0.03  # more than what formats round their time stamps to, less than two frames of any codec
JUMP_S = 10.0  # in formats whose time stamps may jump: beyond it they do not tell of a gap
STAMPS_MAY_JUMP = 0x0200  # AVFMT_TS_DISCONT


@dataclass(frozen=True)
class SoundFacts:
    """A sound file's header."""

    rate_hz: int
    num_channels: int
    duration_s: float | None  # None where the file does not tell

    def num_bytes(self, max_duration_s: float = math.inf) -> int:
        """Memory of the samples of the first `max_duration_s`; 0 where the file does not tell."""
        return round(min(self.duration_s or 0, max_duration_s) * self.rate_hz) * self.num_channels * 4


def probe_sound(path: str | Path) -> SoundFacts:
    """The facts of a sound file, without decoding it.

    Raises:
        AudioError: the file cannot be opened, or holds no audio.
    """
    with open_container(path, "audio", AudioError, ADVICE) as container:
        return _facts(container, _default_track(container, Path(path).name))


def read_sound(path: str | Path, max_duration_s: float = math.inf) -> Sound:
    """
    The default audio track of a sound or video file, in its own rate and channels; the first where none is marked.

    It starts where the file starts: sound that sets in later than the picture gets silence in front, and so does
    what follows a gap. Where rate or channels change, the first rate and the most channels are kept. Damaged packets
    are left out, and silence stands in their place where the file has time stamps.

    Args:
        max_duration_s: no more is decoded or held.

    Raises:
        AudioError: the file cannot be opened, holds no audio, no usable samples, or more than 4 GB of them.
    """
    name = Path(path).name
    with open_container(path, "audio", AudioError, ADVICE) as container:
        track = _default_track(container, name)
        facts = _facts(container, track)
        _check_size(facts.num_bytes(max_duration_s), name)
        sound = _decode(container, track, name, max_duration_s)
    is_whole = facts.duration_s is None or sound.duration_s < max_duration_s
    sound = Sound(to_float(sound.samples, name), sound.rate_hz, None if is_whole else facts.duration_s)
    check(sound, name)
    return sound


def _default_track(container: InputContainer, name: str) -> AudioStream:
    """The audio stream that players take."""
    tracks = container.streams.audio
    if not tracks:
        raise AudioError(f"{name} holds no audio. Choose a file with sound.")
    return next((track for track in tracks if track.disposition & Disposition.default), tracks[0])


def _facts(container: InputContainer, track: AudioStream) -> SoundFacts:
    if track.duration is not None and track.time_base is not None:
        duration_s = float(track.duration * track.time_base)
    else:
        duration_s = None if container.duration is None else container.duration / av.time_base
    return SoundFacts(track.rate or 0, track.channels, duration_s)


def _decode(container: InputContainer, track: AudioStream, name: str, max_duration_s: float) -> Sound:
    """The samples of a track from the start of the file, silent where it has none."""
    recording, clock_s = None, 0.0  # when the next sample is due
    for frame in _frames(container, track, name):
        if recording is None:
            check_rate(frame.sample_rate, name)
            recording = _Recording(frame, max_duration_s, name)
            recording.add_silence(_behind_picture_s(container, frame))
            clock_s = frame.time or 0.0
        if frame.time is not None and abs(frame.time - clock_s) > GAP_S:
            if not _is_jump(container, frame.time - clock_s):
                recording.add_silence(frame.time - clock_s)
            clock_s = frame.time
        recording.add(frame)
        clock_s += frame.samples / frame.sample_rate
        if recording.is_full:
            break
    if recording is None:
        raise AudioError(f"{name} holds an audio track without a single sample. Choose audio that sounds.")
    recording.flush()
    return recording.sound()


def _frames(container: InputContainer, track: AudioStream, name: str) -> Iterator[av.AudioFrame]:
    """Decoded frames; damaged packets are left out, as players do."""
    num_damaged = 0
    try:
        for packet in container.demux(track):
            try:
                frames = packet.decode()
            except FFmpegError:
                num_damaged += 1
            else:
                yield from frames
    except FFmpegError:  # of the file itself; what comes after it cannot be found
        num_damaged += 1
    if num_damaged:
        logger.warning("%s: %d damaged audio packets were left out.", name, num_damaged)


def _behind_picture_s(container: InputContainer, first: av.AudioFrame) -> float:
    """Seconds between the start of the picture, where there is one, and the first sound."""
    pictures = moving_pictures(container)
    if not pictures:
        return 0.0  # the first time stamp of a file of sound alone is its codec's delay
    start_s = float((pictures[0].start_time or 0) * (pictures[0].time_base or 0))
    return max(0.0, (first.time or 0.0) - start_s)


def _is_jump(container: InputContainer, gap_s: float) -> bool:
    """True for a step in time stamps that begins another recording, as in chained Ogg and joined MPEG-TS."""
    return gap_s < 0 or (gap_s > JUMP_S and bool(container.format.flags & STAMPS_MAY_JUMP))


def _check_size(num_bytes: int, name: str) -> None:
    if num_bytes > MAX_BYTES:
        raise AudioError(
            f"{name} takes more than {MAX_BYTES / 10**9:g} GB of memory as samples. Cut it, or ask for fewer frames."
        )


class _Recording:
    """Decoded sound in one array that grows: at the first frame's rate, with the most channels of all frames."""

    def __init__(self, first: av.AudioFrame, max_duration_s: float, name: str):
        self._rate_hz, self._name = first.sample_rate, name
        self._samples = np.zeros((0, first.layout.nb_channels), np.float32)  # n c
        self._length = 0
        self._max_length = math.ceil(min(max_duration_s * self._rate_hz, sys.maxsize))
        self._resampler: av.AudioResampler | None = None
        self._source: tuple = ()  # what the resampler takes

    @property
    def is_full(self) -> bool:
        """The longest duration is reached."""
        return self._length >= self._max_length

    def add(self, frame: av.AudioFrame) -> None:
        """Appends a frame of any rate, layout and format."""
        source = (frame.sample_rate, frame.layout.name, frame.format.name)
        if self._resampler is None or source != self._source:
            self.flush()
            # Interleaved, because PyAV 18 miscounts the planes of 8 channels.
            self._resampler, self._source = av.AudioResampler(format="flt", rate=self._rate_hz), source
        self._append(self._resampler.resample(frame))

    def add_silence(self, duration_s: float) -> None:
        """Appends silence."""
        self.flush()
        self._grow(round(duration_s * self._rate_hz))

    def flush(self) -> None:
        """Appends the samples that the resampler holds back."""
        if self._resampler is not None:
            self._append(self._resampler.resample(None))
            self._resampler = None

    def sound(self) -> Sound:
        """The sound; nothing may be added after it."""
        self._samples.resize((self._length, self._samples.shape[1]), refcheck=False)
        return Sound(torch.from_numpy(self._samples).T, self._rate_hz)

    def _append(self, frames: list[av.AudioFrame]) -> None:
        for frame in frames:
            samples = frame.to_ndarray().reshape(-1, frame.layout.nb_channels)
            num_channels = max(samples.shape[1], self._samples.shape[1])
            self._samples = _with_channels(self._samples, num_channels)
            start, length = self._length, self._grow(len(samples))
            self._samples[start : start + length] = _with_channels(samples[:length], num_channels)

    def _grow(self, num_samples: int) -> int:
        """Lengthens the sound by as many zeros, as far as the longest duration; returns how many they are."""
        num_samples, num_channels = min(num_samples, self._max_length - self._length), self._samples.shape[1]
        self._length += num_samples
        _check_size(4 * self._length * num_channels, self._name)
        if self._length > len(self._samples):  # in place, where the system can move memory
            self._samples.resize((max(self._length, 5 * len(self._samples) // 4), num_channels), refcheck=False)
        return num_samples


def _with_channels(samples: np.ndarray, num_channels: int) -> np.ndarray:
    """`n c` with more channels."""
    if samples.shape[1] == num_channels:
        return samples
    wider = np.empty((len(samples), num_channels), np.float32)
    wider[:] = expand_channels(torch.from_numpy(samples).T, num_channels).T
    return wider
