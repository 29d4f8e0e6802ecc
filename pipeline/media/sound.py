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
from av.stream import Disposition

from ..audio.waveform import LOUDEST, Sound, check, check_rate, expand_channels, peak_of, to_float
from ..errors import AudioError
from .files import decodable, decoded, moving_pictures, open_container
from .joined import joined_parts

logger = logging.getLogger(__name__)

ADVICE = "Convert it to WAV or MP3."
MAX_BYTES = 4 * 10**9  # of samples: 2.9 hours of stereo at 48 kHz
GAP_S = 0.03  # more than what formats round their time stamps to, less than two frames of any codec
JUMP_S = 10.0  # in formats whose time stamps may jump: beyond it they do not tell of a gap
STAMPS_MAY_JUMP = 0x0200  # AVFMT_TS_DISCONT
FROM_ZERO = ("matroska", "mov")  # formats whose time begins at 0, and not at the first sound
UNREAD_S = 0.5  # that a sound may end before its header says
EXACT_NUMBERS = ("pcm_", "wavpack")  # codecs that hold floats as they were, of any range


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
    facts = [_facts(container, track) for container, track in _tracks(path)]
    durations_s = [each.duration_s for each in facts]
    return SoundFacts(
        facts[0].rate_hz,
        max(each.num_channels for each in facts),
        None if None in durations_s else sum(filter(None, durations_s)),
    )


def read_sound(path: str | Path, max_duration_s: float = math.inf) -> Sound:
    """
    The default audio track of a sound or video file, in its own rate and channels; the first where none is marked.

    It starts where the file starts: sound that sets in later than the picture gets silence in front, and so does
    what follows a gap. Where rate or channels change, the first rate and the most channels are kept. Damaged packets
    are left out with a word in the log, and silence stands in their place where the file has time stamps.

    Args:
        max_duration_s: no more is decoded or held.

    Raises:
        AudioError: the file cannot be opened, holds no audio, no usable samples, or more than 4 GB of them.
    """
    name, facts = Path(path).name, probe_sound(path)
    _check_size(facts.num_bytes(max_duration_s), name)
    sound = _decode(path, max_duration_s)
    if sound.duration_s < min(facts.duration_s or 0, max_duration_s) - UNREAD_S:
        logger.warning("%s ends after %.2f s; its header says %.2f s.", name, sound.duration_s, facts.duration_s)
    is_whole = facts.duration_s is None or sound.duration_s < max_duration_s
    sound = Sound(to_float(sound.samples, name), sound.rate_hz, None if is_whole else facts.duration_s)
    check(sound, name)
    return sound


def _tracks(path: str | Path) -> Iterator[tuple[InputContainer, AudioStream]]:
    """The audio track of each part that a file is joined of; parts that cannot be read are left out with a word.

    Raises:
        AudioError: no part can be read, or none holds audio.
    """
    name, parts, errors = Path(path).name, joined_parts(path), []
    for number, part in enumerate(parts, 1):
        try:
            with open_container(path, "audio", AudioError, ADVICE, part if len(parts) > 1 else None) as container:
                yield container, _default_track(container, name)
        except AudioError as error:
            errors.append(error)
            if len(errors) == len(parts):
                raise
            logger.warning("Part %d of %d is left out: %s", number, len(parts), error)


def _default_track(container: InputContainer, name: str) -> AudioStream:
    """The audio stream that players take."""
    tracks = decodable(container.streams.audio)
    if not container.streams.audio:
        raise AudioError(f"{name} holds no audio. Choose a file with sound.")
    if not tracks:
        raise AudioError(f"{name} holds audio that cannot be decoded here. {ADVICE}")
    return next((track for track in tracks if track.disposition & Disposition.default), tracks[0])


def _facts(container: InputContainer, track: AudioStream) -> SoundFacts:
    if track.duration is not None and track.time_base is not None:
        duration_s = float(track.duration * track.time_base)
    else:
        duration_s = None if container.duration is None else container.duration / av.time_base
    return SoundFacts(track.rate or 0, track.channels, duration_s)


def _decode(path: str | Path, max_duration_s: float) -> Sound:
    """The samples of a file's track from its start, silent where it has none."""
    name, recording, num_damaged = Path(path).name, None, 0
    for container, track in _tracks(path):
        stamps = None
        for frame in decoded(container, track, name):
            if frame is None:
                num_damaged += 1
                continue
            if recording is None:
                check_rate(frame.sample_rate, name)
                recording = _Recording(frame, track.codec_context.name, max_duration_s, name)
            if stamps is None:
                recording.add_silence(_late_start_s(container, frame))
                stamps = _TimeStamps(container)
            recording.add_silence(stamps.gap_s(frame))
            recording.add(frame)
            if recording.is_full:
                break
        if recording is not None and recording.is_full:
            break
    if recording is None:
        raise AudioError(f"{name} holds an audio track without a single sample. Choose audio that sounds.")
    recording.flush()
    if num_damaged + recording.num_damaged:
        logger.warning("%s: %d damaged audio packets were left out.", name, num_damaged + recording.num_damaged)
    return recording.sound()


def _late_start_s(container: InputContainer, first: av.AudioFrame) -> float:
    """Seconds between the start of the file, or of its picture, and the first sound."""
    start_s, pictures = first.time or 0.0, moving_pictures(container)
    if pictures:
        return max(0.0, start_s - float((pictures[0].start_time or 0) * (pictures[0].time_base or 0)))
    is_late = GAP_S < start_s < JUMP_S  # below, it is the codec's delay; above, this is a piece of a longer file
    return start_s if is_late and container.format.name.startswith(FROM_ZERO) else 0.0


class _TimeStamps:
    """The time stamps of a track's frames, and the gaps between them.

    A step back begins another recording; so does a long step in formats whose stamps may jump, as joined MPEG-TS.
    """

    def __init__(self, container: InputContainer):
        self._longest_gap_s = JUMP_S if container.format.flags & STAMPS_MAY_JUMP else math.inf
        self._end_s: float | None = None  # of the frame before

    def gap_s(self, frame: av.AudioFrame) -> float:
        """Seconds without sound between the frame before and this one."""
        duration_s, end_s, start_s = frame.samples / frame.sample_rate, self._end_s, frame.time
        if start_s is None or end_s is None:
            start_s = end_s if start_s is None else start_s
            self._end_s = None if start_s is None else start_s + duration_s
            return 0.0
        gap_s = start_s - end_s
        self._end_s = (end_s if abs(gap_s) <= GAP_S else start_s) + duration_s  # stamps are rounded; samples are not
        return gap_s if GAP_S < gap_s <= self._longest_gap_s else 0.0


def _check_size(num_bytes: int, name: str) -> None:
    if num_bytes > MAX_BYTES:
        raise AudioError(
            f"{name} takes more than {MAX_BYTES / 10**9:g} GB of memory as samples. Cut it, or ask for fewer frames."
        )


class _Recording:
    """Decoded sound in one array that grows: at the first frame's rate, with the most channels of all frames."""

    def __init__(self, first: av.AudioFrame, codec: str, max_duration_s: float, name: str):
        self.num_damaged = 0  # frames whose numbers no sound has
        self.rate_hz, self._name = first.sample_rate, name
        self._is_coded = not codec.startswith(EXACT_NUMBERS)
        self._samples = np.zeros((0, first.layout.nb_channels), np.float32)  # n c
        self._length = 0
        self._max_length = math.ceil(min(max_duration_s * self.rate_hz, sys.maxsize))
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
            self._resampler, self._source = av.AudioResampler(format="flt", rate=self.rate_hz), source
        self._append(self._resampler.resample(frame))

    def add_silence(self, duration_s: float) -> None:
        """Appends silence, if any."""
        if duration_s <= 0:
            return
        self.flush()
        self._grow(round(duration_s * self.rate_hz))

    def flush(self) -> None:
        """Appends the samples that the resampler holds back."""
        if self._resampler is not None:
            self._append(self._resampler.resample(None))
            self._resampler = None

    def sound(self) -> Sound:
        """The sound; nothing may be added after it."""
        self._samples.resize((self._length, self._samples.shape[1]), refcheck=False)
        return Sound(torch.from_numpy(self._samples).T, self.rate_hz)

    def _append(self, frames: list[av.AudioFrame]) -> None:
        for frame in frames:
            samples = frame.to_ndarray().reshape(-1, frame.layout.nb_channels)
            num_channels = max(samples.shape[1], self._samples.shape[1])
            self._samples = _with_channels(self._samples, num_channels)
            start, length = self._length, self._grow(len(samples))
            if self._is_coded and not peak_of(torch.from_numpy(samples)) <= LOUDEST:  # NaN, too
                self.num_damaged += 1
            else:
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
