"""The speakers' timeline: the sounds of all speakers, each at its start."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from ..choice import Choice
from ..errors import AudioError
from ..shapes import FPS
from .waveform import (
    SAMPLE_RATE_HZ,
    SILENT,
    Sound,
    check,
    expand_channels,
    normalize_loudness,
    peak_of,
    remove_offset,
    resample,
    to_mono_16k,
    voice_loudness_lufs,
)

logger = logging.getLogger(__name__)

LATEST_START_S = 4 * 3600  # a timeline is held in memory
CROSSTALK_LU = 30.0  # below the loudest voice: a listener's microphone picks up the others and the room


class Arrangement(Choice):
    """The order of several sounds without given starts: together, or one after the other."""

    PARALLEL = "para"
    IN_TURN = "add"


@dataclass(frozen=True)
class Speech:
    """The sound of one speaker, and its start."""

    sound: Sound | None  # None: a silent speaker
    start_s: float | None = None  # None: as the arrangement has it

    def __post_init__(self) -> None:
        if self.start_s is not None and not 0 <= self.start_s <= LATEST_START_S:
            raise AudioError(f"A speaker's start must be in 0..{LATEST_START_S} seconds, got {self.start_s:g}.")


@dataclass(frozen=True)
class Turn:
    """A speech on the timeline."""

    start_s: float
    duration_s: float

    @property
    def end_s(self) -> float:
        """The moment after its last sample."""
        return self.start_s + self.duration_s


def plan_turns(speeches: Sequence[Speech], arrangement: Arrangement) -> list[Turn]:
    """
    Start and duration of every speech. One given `start_s` makes it a timeline, where a speech without starts at 0.

    A silent speaker's turn is as long as the longest sound, as in the published program.
    """
    if not speeches:
        raise AudioError("There is no speaker. Give the audio of at least one.")
    longest_s = max((speech.sound.full_duration_s for speech in speeches if speech.sound is not None), default=0.0)
    is_timeline = any(speech.start_s is not None for speech in speeches)
    turns, end_s = [], 0.0
    for speech in speeches:
        duration_s = longest_s if speech.sound is None else speech.sound.full_duration_s
        turns.append(Turn((speech.start_s or 0.0) if is_timeline else end_s, duration_s))
        if arrangement is Arrangement.IN_TURN:
            end_s = turns[-1].end_s
    return turns


def arrange(
    speeches: Sequence[Speech], arrangement: Arrangement, normalize: bool = True, max_duration_s: float = math.inf
) -> list[Tensor]:
    """
    A mono 16 kHz track for every speaker, all of the same length, silent where the speaker is.

    Args:
        normalize: brings each voice to -23 LUFS on its own, before silence is added. A recorder's offset is removed,
            and of several voices one that is 30 LU below the loudest is taken for silence.
        max_duration_s: of the tracks; nothing later is worked on.
    """
    turns = plan_turns(speeches, arrangement)
    duration_s = min(max_duration_s, max(segment.end_s for segment in turns))
    pairs = list(zip(speeches, turns, strict=True))
    voices = [_mono(speech.sound, duration_s - segment.start_s) for speech, segment in pairs]
    if normalize:
        voices = [normalize_loudness(voice) for voice in _without_crosstalk(list(map(remove_offset, voices)))]
    num_samples = round(duration_s * SAMPLE_RATE_HZ)
    starts = [round(segment.start_s * SAMPLE_RATE_HZ) for segment in turns]
    return [_mixed([(voice[None], start)], num_samples)[0] for voice, start in zip(voices, starts, strict=True)]


def mix_soundtrack(
    speeches: Sequence[Speech], arrangement: Arrangement, num_frames: int, fps: Fraction | int = FPS
) -> Sound | None:
    """
    The sound of a video of `num_frames`, as long as the voices and at most as the video; None where all are silent.

    One sound is left as it came, in rate, channels and loudness. Several are mixed at the highest rate and the most
    channels among them, and the mix is turned down where it would clip.
    """
    pairs = zip(speeches, plan_turns(speeches, arrangement), strict=True)
    voices = [(speech.sound, segment.start_s) for speech, segment in pairs if speech.sound is not None]
    if not voices:
        return None
    for sound, _ in voices:
        check(sound)
    rate_hz = max(sound.rate_hz for sound, _ in voices)
    num_channels = max(sound.num_channels for sound, _ in voices)
    end_s = max(start_s + sound.duration_s for sound, start_s in voices)
    duration_s = Fraction(num_frames) / Fraction(fps)
    num_samples = min(round(duration_s * rate_hz), round(end_s * rate_hz))
    voices = [(sound.first(max(0.0, float(duration_s) - start_s)), start_s) for sound, start_s in voices]
    tracks = [
        (expand_channels(resample(sound.samples, sound.rate_hz, rate_hz), num_channels), round(start_s * rate_hz))
        for sound, start_s in voices
    ]
    return Sound(_mixed(tracks, num_samples), rate_hz)


def _mono(sound: Sound | None, max_duration_s: float) -> Tensor:
    """The used beginning of a sound, as the encoder takes it: `n`, 16 kHz; nothing of a silent speaker's."""
    if sound is None or max_duration_s <= 0:
        return torch.zeros(0)
    return to_mono_16k(sound.first(max_duration_s))


def _without_crosstalk(voices: list[Tensor]) -> list[Tensor]:
    """The voices, and silence for those of several that hold nothing but noise or the others' voices."""
    if len(voices) == 1:
        return voices
    loudness = [voice_loudness_lufs(voice) for voice in voices]
    loudest = max((level for level in loudness if level is not None), default=0.0)
    silent = [
        peak_of(voice) < SILENT if level is None else level < loudest - CROSSTALK_LU
        for voice, level in zip(voices, loudness, strict=True)
    ]
    for speaker, (voice, is_silent) in enumerate(zip(voices, silent, strict=True), start=1):
        if is_silent and voice.any():
            logger.info("Speaker %d is %g LU below the loudest or more, and taken as silent.", speaker, CROSSTALK_LU)
    return [torch.zeros_like(voice) if is_silent else voice for voice, is_silent in zip(voices, silent, strict=True)]


def _mixed(tracks: Sequence[tuple[Tensor, int]], num_samples: int) -> Tensor:
    """The sum of sounds `c n` at their starts, `c num_samples`; that of several is turned down where it would clip."""
    first, start = tracks[0]
    if len(tracks) == 1 and start == 0 and first.shape[1] >= num_samples:
        return first[:, :num_samples]
    mixed = torch.zeros(first.shape[0], num_samples)
    for samples, start in tracks:
        samples = samples[:, : max(0, num_samples - start)]
        mixed[:, start : start + samples.shape[1]] += samples
    peak = peak_of(mixed)
    if len(tracks) > 1 and peak > 1:
        logger.info("The mixed voices peak at %.2f and are turned down to full scale.", peak)
        mixed /= peak
    return mixed
