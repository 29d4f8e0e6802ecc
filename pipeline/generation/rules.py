"""Rules for the inputs of a run; preflight and engine call the same functions."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from ..audio.embeds import AudioEmbeds
from ..conditioning.reference_image import check_size
from ..conditioning.tokens import check_image, check_prompt
from ..errors import ConfigError
from .recipes import ModelDefaults

if TYPE_CHECKING:
    from ..conditioning.conditioning import Conditioning
    from .run_spec import RunSpec

logger = logging.getLogger(__name__)


class InputSizes(Protocol):
    """The sizes that a transformer's configuration, or its files' headers, tell."""

    @property
    def audio_features(self) -> tuple[int, int]:
        """Layers and channels of the speech features."""
        ...

    @property
    def text_dim(self) -> int:
        """Channels of a prompt token."""
        ...

    @property
    def image_dim(self) -> int:
        """Channels of an image token."""
        ...


def check_inputs(
    sizes: InputSizes, text_len: int, audio: AudioEmbeds, conditioning: Conditioning, spec: RunSpec
) -> None:
    """Raises `ConfigError` where encoded inputs do not fit the network or each other."""
    spec.acceleration.check(spec.steps)
    check_size(conditioning.height, conditioning.width)
    check_audio_features(tuple(audio.features.shape[2:]), tuple(sizes.audio_features))
    check_speakers(audio.num_speakers, spec.model)
    check_places(audio.num_speakers, conditioning.num_places)
    note_speakers(audio.num_speakers, spec.model)
    for prompt in conditioning.all_prompts:
        check_prompt(prompt.shape[1], sizes.text_dim)
        if len(prompt) > text_len:
            raise ConfigError(f"A prompt has {len(prompt)} tokens, the model takes {text_len} at most. Cut it.")
    if conditioning.image_embeds is not None:
        check_image(conditioning.image_embeds.shape[1], sizes.image_dim)


def check_audio_features(features: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raises `ConfigError` where speech features have other layers and channels than the audio weights take."""
    if features != expected:
        raise ConfigError(
            f"The audio embeds have {features} layers x channels, the audio weights take {expected}. Encode the audio "
            f"with chinese-wav2vec2-base."
        )


def check_speakers(num_speakers: int, model: ModelDefaults) -> None:
    """Raises `ConfigError` where a model that knows one person in the picture gets several, or one in a place."""
    if model.max_speakers == 1 < num_speakers:
        raise ConfigError(
            f"{model.name} animates one person, who has the picture alone, got {num_speakers} speakers. Take one voice "
            f"without a place, or InfiniteTalk's weights."
        )


def check_places(num_voices: int, num_places: int) -> None:
    """Raises `ConfigError` where several voices do not have a place each."""
    if num_voices > 1 and num_places != num_voices:
        raise ConfigError(
            f"{num_voices} voices need as many places in the picture, got {num_places}. Give a box or a mask for each "
            f"voice."
        )


def check_dubbing(num_source_frames: int, model: ModelDefaults) -> None:
    """Raises `ConfigError` where a video is given to a model that animates still pictures."""
    if num_source_frames > 1 and not model.dubs_video:
        raise ConfigError(
            f"A video of {num_source_frames} frames is dubbed by InfiniteTalk's weights alone, got {model.name}. Take "
            f"InfiniteTalk's weights, or a picture."
        )


def note_speakers(num_speakers: int, model: ModelDefaults) -> None:
    """Logs that more speakers are heard than the model was trained with."""
    if num_speakers > model.max_speakers:
        logger.warning(
            "%d speakers: %s was trained with %d at most, more is untrained territory.",
            num_speakers,
            model.name,
            model.max_speakers,
        )
