"""A request: what is to be made, and nothing of where it runs; the remote service takes the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .audio.dialogue import Arrangement, Speech
from .audio.embeds import decode_duration_s
from .audio.waveform import Sound
from .conditioning.speakers import Place
from .config import (
    Acceleration,
    AudioFeatures,
    ColorMatch,
    Fp8Products,
    GenerationConfig,
    Resolution,
    SamplerKind,
    WindowPlan,
)
from .errors import Problems
from .media.picture import read_image
from .media.sound import read_sound
from .media.video import frames_at_25, is_video, read_video

Box = tuple[float, float, float, float]
CHOICES = {
    "resolution": Resolution,
    "acceleration": Acceleration,
    "fp8_products": Fp8Products,
    "plan": WindowPlan,
    "features": AudioFeatures,
    "sampler": SamplerKind,
    "color_match": ColorMatch,
}


@dataclass(frozen=True)
class Voice:
    """One speaker.

    Attributes:
        sound: a file or a sound; None for a speaker who keeps quiet.
        start_s: seconds from the start of the video; None goes by the request's `in_turn`.
        box: the speaker's place in percent of the picture: left, top, right, bottom; None shares the width.
    """

    sound: Path | Sound | None = None
    start_s: float | None = None
    box: Box | None = None


@dataclass(frozen=True)
class Request:
    """A picture, voices, a prompt and choices.

    Attributes:
        image: the portrait, or a video to dub: a file, or uint8 `h w c` / `f h w c` at 25 frames a second.
        voices: one for each speaker.
        prompt: `|` parts prompts for the windows of a long video.
        negative_prompt: empty takes the published one.
        soundtrack: the sound of the video where it is not the voices, such as the mix they were separated from.
        in_turn: several voices one after the other.
        config: the choices.
    """

    image: Path | Tensor | None
    voices: tuple[Voice, ...]
    prompt: str = ""
    negative_prompt: str = ""
    soundtrack: Path | Sound | None = None
    in_turn: bool = False
    config: GenerationConfig = GenerationConfig()

    @classmethod
    def of(
        cls,
        image: Path | str | Tensor | None,
        audio: Path | str | Sound | Sequence[Path | str | Sound | None] | None,
        prompt: str = "",
        *,
        start: Sequence[float] = (),
        box: Sequence[Box] = (),
        soundtrack: Path | str | Sound | None = None,
        negative_prompt: str = "",
        in_turn: bool = False,
        problems: Problems | None = None,
        **config: Any,
    ) -> Request:
        """A request by the names of the command line.

        Args:
            image: the portrait, or a video to dub.
            audio: a voice, or one for each speaker.
            prompt: what the video shows.
            start: when each voice starts, in seconds.
            box: a place for each voice, in percent: left, top, right, bottom.
            soundtrack: the sound of the video where it is not the voices.
            negative_prompt: what the video should not show.
            in_turn: several voices one after the other.
            problems: collects what is wrong; None raises it.
            **config: the fields of `GenerationConfig`.

        Raises:
            ConfigError: a choice is out of range, or there are more or fewer starts or boxes than voices.
        """
        collected = problems or Problems()
        for name in [name for name in CHOICES if config.get(name) is not None]:
            config[name] = collected.attempt(name, CHOICES[name], config[name]) or getattr(GenerationConfig, name)
        voices = list(audio) if isinstance(audio, list | tuple) else [audio]
        starts = _one_each("start", "starts", start, len(voices), collected)
        boxes = _one_each("box", "boxes", box, len(voices), collected)
        request = cls(
            image=_path(image),
            voices=tuple(map(Voice, map(_path, voices), starts, boxes)),
            prompt=prompt,
            negative_prompt=negative_prompt,
            soundtrack=_path(soundtrack),
            in_turn=in_turn,
            config=_config(config, collected),
        )
        if problems is None:
            collected.raise_errors()
        return request

    @property
    def arrangement(self) -> Arrangement:
        """The order of voices without a start: one after the other, or all at once."""
        return Arrangement.IN_TURN if self.in_turn else Arrangement.PARALLEL


@dataclass(frozen=True)
class RequestMedia:
    """The files of a request, read; None for what could not be.

    Attributes:
        frames: uint8 `f h w c`, one of a picture, those of a video at 25 a second.
        speeches: sounds and starts, in the order of the voices.
        soundtrack: the sound of the video where it is not the voices.
        places: of the voices.
    """

    frames: Tensor | None
    speeches: list[Speech]
    soundtrack: Sound | None
    places: list[Place]

    @property
    def sound_bytes(self) -> int:
        """Memory of all samples."""
        sounds = (self.soundtrack, *(speech.sound for speech in self.speeches))
        return sum(sound.samples.nbytes for sound in sounds if sound is not None)


def read_media(request: Request, problems: Problems) -> RequestMedia:
    """Reads the picture and the sounds; what is wrong with them goes to `problems`."""
    frames = None
    if request.image is None:
        problems.add("image", "There is none. Name a portrait with --image.")
    else:
        frames = problems.attempt("image", _frames, request.image)
    if not request.voices:
        problems.add("audio", "There is none. Name a voice with --audio, once for each speaker.")
    num_frames = request.config.num_frames
    duration_s = decode_duration_s(num_frames) if num_frames else math.inf
    speeches = [problems.attempt("audio", _speech, voice, duration_s) for voice in request.voices]
    soundtrack = request.soundtrack
    places = [problems.attempt("box", Place, None, voice.box, voice.box is not None) for voice in request.voices]
    return RequestMedia(
        frames=frames,
        speeches=[speech for speech in speeches if speech is not None],
        soundtrack=None if soundtrack is None else problems.attempt("soundtrack", _sound, soundtrack, duration_s),
        places=[place for place in places if place is not None],
    )


def _frames(image: Path | Tensor) -> Tensor:
    if isinstance(image, Tensor):
        return image if image.ndim == 4 else image[None]
    if is_video(image):
        video = read_video(image)
        return frames_at_25(video.frames, video.times_s)
    return read_image(image)[None]


def _speech(voice: Voice, max_duration_s: float) -> Speech:
    return Speech(None if voice.sound is None else _sound(voice.sound, max_duration_s), voice.start_s)


def _sound(sound: Path | Sound, max_duration_s: float) -> Sound:
    return sound if isinstance(sound, Sound) else read_sound(sound, max_duration_s)


def _config(choices: dict[str, Any], problems: Problems) -> GenerationConfig:
    """The choices; one that is out of range goes to `problems`, and its default takes its place."""
    valid = {}
    for name, value in choices.items():
        if problems.attempt("", lambda choice: GenerationConfig(**choice), {name: value}) is not None:
            valid[name] = value
    return GenerationConfig(**valid)


def _one_each(option: str, name: str, values: Sequence[Any], count: int, problems: Problems) -> Sequence[Any]:
    """`values`, one for each of `count` voices; None for each where there are none, or a wrong number of them."""
    if len(values) == count:
        return values
    if values:
        problems.add(option, f"{count} voices need as many {name}, got {len(values)}.")
    return [None] * count


def _path(source: Any) -> Any:
    """A file's name as a path; anything else as it is."""
    return Path(source).expanduser() if isinstance(source, str) else source
