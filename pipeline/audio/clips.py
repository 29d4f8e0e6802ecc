"""A dialogue of clips: who says what, when; and recordings of several people cut into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from ..errors import AudioError
from .dialogue import LATEST_START_S, Speech, Turn
from .waveform import Sound, expand_channels, resample

OVERLAP_S = 0.02  # of two clips of one speaker, as of subtitles whose times are rounded


@dataclass(frozen=True)
class Clip:
    """Something that a speaker says.

    Attributes:
        sound: of it.
        speaker: from 1.
        start_s: from the start of the video; None follows the clip before.
        pause_s: after the end of the clip before, if there is one; below 0 they overlap.
    """

    sound: Sound
    speaker: int
    start_s: float | None = None
    pause_s: float = 0.0


@dataclass(frozen=True)
class Dialogue:
    """The clips in the order that they were added in.

    Attributes:
        clips: of all speakers.
        soundtrack: the recording that they were cut from, for the ears; None mixes them.
    """

    clips: tuple[Clip, ...] = ()
    soundtrack: Sound | None = None

    def with_clip(self, clip: Clip) -> Dialogue:
        """The same with one more clip."""
        return replace(self, clips=(*self.clips, clip))

    @property
    def num_speakers(self) -> int:
        """Speakers; one without a clip keeps silent."""
        return max((clip.speaker for clip in self.clips), default=0)

    def turns(self) -> list[Turn]:
        """Start and duration of each clip.

        Raises:
            AudioError: a clip would start before the video, or after hours.
        """
        turns, end_s = [], 0.0
        for number, clip in enumerate(self.clips, start=1):
            start_s = clip.start_s
            if start_s is None:
                start_s = end_s + clip.pause_s if turns else 0.0
            if not 0 <= start_s <= LATEST_START_S:
                raise AudioError(
                    f"Clip {number} would start at {start_s:.2f} s. It must start in 0..{LATEST_START_S}: change its "
                    f"start or its pause."
                )
            turns.append(Turn(start_s, clip.sound.full_duration_s))
            end_s = turns[-1].end_s
        return turns

    def speeches(self) -> list[Speech]:
        """All that each speaker says as one sound, from the first clip on.

        Raises:
            AudioError: there are no clips, or two of one speaker overlap.
        """
        if not self.clips:
            raise AudioError("The dialogue is empty. Add a clip with MultiTalk Dialogue.")
        turns = self.turns()
        return [self._speech(speaker, turns) for speaker in range(1, self.num_speakers + 1)]

    def _speech(self, speaker: int, turns: Sequence[Turn]) -> Speech:
        pairs = zip(self.clips, turns, strict=True)
        parts = sorted(((interval, clip.sound) for clip, interval in pairs if clip.speaker == speaker), key=_start)
        if not parts:
            return Speech(None)
        for (before, _), (after, _) in pairwise(parts):
            if after.start_s < before.end_s - OVERLAP_S:
                raise AudioError(
                    f"Speaker {speaker} would say two things at {after.start_s:.2f} s. Start the later clip at "
                    f"{before.end_s:.2f} s, or give it to another speaker."
                )
        return Speech(_track(parts), parts[0][0].start_s)


def split_channels(recording: Sound) -> Dialogue:
    """A dialogue of a recording with a speaker on each channel, the first one on the left.

    Raises:
        AudioError: it has one channel.
    """
    if recording.num_channels < 2:
        raise AudioError("The recording has one channel. Cut it by a transcript, or take one with a speaker on each.")
    clips = [
        Clip(Sound(channel[None], recording.rate_hz), speaker, 0.0)
        for speaker, channel in enumerate(recording.samples, start=1)
    ]
    return Dialogue(tuple(clips), recording)


def split_by_transcript(recording: Sound, turns: Sequence[tuple[str, Turn]]) -> Dialogue:
    """A dialogue of a mixed recording by the turns of a transcript.

    Args:
        recording: of everybody.
        turns: who speaks when; the first one to speak is speaker 1, the next new one speaker 2.

    Raises:
        AudioError: nothing of a turn is in the recording.
    """
    speakers = {name: number for number, name in enumerate(dict.fromkeys(name for name, _ in turns), start=1)}
    clips = []
    for name, interval in sorted(turns, key=lambda pair: pair[1].start_s):
        first, last = (round(moment * recording.rate_hz) for moment in (interval.start_s, interval.end_s))
        samples = recording.samples[:, first:last]
        if not samples.shape[1]:
            raise AudioError(
                f"{name} speaks at {interval.start_s:.2f} s, and the recording lasts {recording.duration_s:.2f} s. "
                f"Take the transcript of this recording."
            )
        clips.append(Clip(Sound(samples, recording.rate_hz), speakers[name], interval.start_s))
    return Dialogue(tuple(clips), recording)


def _start(parts: tuple[Turn, Sound]) -> float:
    return parts[0].start_s


def _track(parts: Sequence[tuple[Turn, Sound]]) -> Sound:
    """Sounds of one speaker, in the order of their turns, with silence between; one alone stays as it came."""
    (first, sound), *others = parts
    if not others:
        return sound
    rate_hz = max(sound.rate_hz for _, sound in parts)
    num_channels = max(sound.num_channels for _, sound in parts)
    end_s = max(interval.end_s for interval, _ in parts)
    track = torch.zeros(num_channels, round((end_s - first.start_s) * rate_hz))
    for interval, sound in parts:
        samples = expand_channels(resample(sound.samples, sound.rate_hz, rate_hz), num_channels)
        start = round((interval.start_s - first.start_s) * rate_hz)
        samples = samples[:, : track.shape[1] - start]
        track[:, start : start + samples.shape[1]] = samples
    return Sound(track, rate_hz)
