"""Who speaks when: the sounds of all speakers, laid out on one timeline."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from ..choice import Choice
from ..errors import AudioError
from ..shapes import FPS
from .waveform import SAMPLE_RATE_HZ, Sound, check, fit_length, normalize_loudness, resample, to_mono_16k

logger = logging.getLogger(__name__)

LATEST_START_S = 4 * 3600  # a timeline is held in memory


class Arrangement(Choice):
    """How several sounds follow each other where no start is given: together, or one after the other."""

    PARALLEL = "para"
    IN_TURN = "add"


@dataclass(frozen=True)
class Speech:
    """What one speaker says, and when."""

    sound: Sound | None  # None: a silent speaker
    start_s: float | None = None  # None: as the arrangement has it

    def __post_init__(self) -> None:
        if self.start_s is not None and not 0 <= self.start_s <= LATEST_START_S:
            raise AudioError(f"A speaker's start must be in 0..{LATEST_START_S} seconds, got {self.start_s:g}.")


@dataclass(frozen=True)
class Turn:
    """A speaker's place on the timeline."""

    start_s: float
    duration_s: float

    @property
    def end_s(self) -> float:
        """When the speaker has finished."""
        return self.start_s + self.duration_s


def plan_turns(speeches: Sequence[Speech], arrangement: Arrangement) -> list[Turn]:
    """
    When every speaker speaks. One given `start_s` makes it a timeline, where a speech without a start begins at 0.

    A silent speaker's turn is as long as the longest sound, as in the published program.
    """
    if not speeches:
        raise AudioError("There is no speaker. Give the audio of at least one.")
    longest_s = max((speech.sound.duration_s for speech in speeches if speech.sound is not None), default=0.0)
    is_timeline = any(speech.start_s is not None for speech in speeches)
    turns, now_s = [], 0.0
    for speech in speeches:
        duration_s = longest_s if speech.sound is None else speech.sound.duration_s
        turns.append(Turn((speech.start_s or 0.0) if is_timeline else now_s, duration_s))
        if arrangement is Arrangement.IN_TURN:
            now_s = turns[-1].end_s
    return turns


def arrange(speeches: Sequence[Speech], arrangement: Arrangement, normalize: bool = True) -> list[Tensor]:
    """
    A mono 16 kHz track for every speaker, all of the same length, silent where the speaker is.

    With `normalize` each speaker is brought to -23 LUFS on its own, before silence is added.
    """
    turns = plan_turns(speeches, arrangement)
    num_samples = max(round(turn.end_s * SAMPLE_RATE_HZ) for turn in turns)
    return [
        _place(_voice(speech, normalize), round(turn.start_s * SAMPLE_RATE_HZ), num_samples)
        for speech, turn in zip(speeches, turns, strict=True)
    ]


def mix_soundtrack(
    speeches: Sequence[Speech], arrangement: Arrangement, num_frames: int, fps: Fraction | int = FPS
) -> Sound | None:
    """
    The sound of a video of `num_frames`, exactly as long; None where every speaker is silent.

    One sound is left as it came, in rate, channels and loudness. Several are mixed at the highest rate and the most
    channels among them, and the mix is turned down where it would clip.
    """
    turns = plan_turns(speeches, arrangement)
    heard = [(speech.sound, turn) for speech, turn in zip(speeches, turns, strict=True) if speech.sound is not None]
    if not heard:
        return None
    rate_hz = max(sound.rate_hz for sound, _ in heard)
    num_channels = max(sound.num_channels for sound, _ in heard)
    num_samples = round(Fraction(num_frames) / Fraction(fps) * rate_hz)
    tracks = []
    for sound, turn in heard:
        check(sound)
        samples = _expand_channels(resample(sound.samples, sound.rate_hz, rate_hz), num_channels)
        tracks.append(_place(samples, round(turn.start_s * rate_hz), num_samples))
    return Sound(tracks[0] if len(tracks) == 1 else _mix(tracks), rate_hz)


def _voice(speech: Speech, normalize: bool) -> Tensor:
    """What the encoder is to hear of a speaker: mono at 16 kHz, nothing of a silent one."""
    if speech.sound is None:
        return torch.zeros(0)
    mono = to_mono_16k(speech.sound)
    return normalize_loudness(mono) if normalize else mono


def _place(samples: Tensor, start: int, num_samples: int) -> Tensor:
    """`... n` after `start` samples of silence, `... num_samples` in all."""
    return fit_length(torch.nn.functional.pad(samples, (start, 0)), num_samples)


def _expand_channels(samples: Tensor, num_channels: int) -> Tensor:
    """`c n` in more channels: mono from the front pair, everything else from where it was."""
    if samples.shape[0] == 1 and num_channels > 1:
        samples = samples.expand(2, -1)
    return torch.nn.functional.pad(samples, (0, 0, 0, num_channels - samples.shape[0]))


def _mix(tracks: Sequence[Tensor]) -> Tensor:
    """The sum, turned down where it is louder than full scale."""
    mixed = torch.stack(list(tracks)).sum(dim=0)
    peak = mixed.abs().amax().item() if mixed.numel() else 0.0
    if peak > 1:
        logger.info("The mixed voices peak at %.2f and are turned down to full scale.", peak)
    return mixed / max(1.0, peak)
