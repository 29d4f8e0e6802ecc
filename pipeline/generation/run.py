"""Everything that one run is made of, what follows from it, and whether it fits together."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ..acceleration.presets import AccelerationOptions, make_guidance
from ..audio.embeds import AudioEmbeds
from ..conditioning.conditioning import Conditioning
from ..conditioning.tokens import check_image, check_prompt
from ..config import GenerationConfig
from ..errors import ConfigError
from ..host import Host, Progress
from ..memory.placement import Footprint, MemoryConfig, decode_bytes, num_bytes
from ..models.transformer.model import MultiTalkTransformer
from ..sampling.guidance import Guidance
from ..sampling.noise import Noise
from ..sampling.schedule import timesteps
from ..shapes import TOKEN_PIXELS, LatentSize
from .recipes import Reference
from .windows import Window, plan_windows

logger = logging.getLogger(__name__)

TRAINED_SPEAKERS = 2


@dataclass(frozen=True)
class Run:
    """Everything that one run is made of."""

    transformer: MultiTalkTransformer
    audio_embeds: AudioEmbeds
    conditioning: Conditioning
    config: GenerationConfig
    options: AccelerationOptions
    memory: MemoryConfig
    host: Host
    noise: Noise

    @cached_property
    def windows(self) -> list[Window]:
        """The plan."""
        embeds = self.audio_embeds
        num_features = [embeds.features.shape[1]] * embeds.num_speakers
        return plan_windows(self.config.num_frames or embeds.num_frames, self.config.windows, num_features)

    @cached_property
    def timesteps(self) -> Tensor:
        """`steps+1` values of 1000..0."""
        sampling = self.config.sampling
        return timesteps(sampling.steps, sampling.shift_for(self.config.resolution), sampling.skip_tail)

    @cached_property
    def reference(self) -> Reference:
        """What InfiniteTalk's windows share."""
        return Reference()

    @property
    def decode_bytes(self) -> int:
        """What the VAE takes on the device, with the coders' weights; another's VAE is taken for ours."""
        networks = self.conditioning.networks
        itemsize = networks[0].dtype.itemsize if networks else 4
        weights = sum(map(num_bytes, networks))
        return weights + decode_bytes(self.conditioning.height, self.conditioning.width, itemsize)

    @property
    def kept_bytes(self) -> int:
        """What stays on the device from step to step beside the weights: keys and values, and a cache's residuals."""
        size, passes = self.size(self.windows[0]), self.guidance().passes
        prompts = len({role.hears_prompt for role in passes})
        hearing = {role.hears_audio for role in passes}
        voices = sum(self.audio_embeds.num_speakers if hears else 1 for hears in hearing)  # silence is one voice
        residuals = self.options.cache.num_kept(len(passes))
        footprint = Footprint.of(self.transformer)
        return footprint.constant_bytes(size, prompts, voices) + residuals * footprint.tokens_bytes(size)

    def guidance(self) -> Guidance:
        """What compares the passes of a window's steps; it remembers, so every window takes a new one."""
        return make_guidance(self.options, self.config)

    def size(self, window: Window) -> LatentSize:
        """The size of a window's latents."""
        return LatentSize.of_video(window.num_frames, self.conditioning.height, self.conditioning.width)

    def report(
        self,
        stage: str,
        window: Window,
        done: float,
        step: int = 0,
        latents: Tensor | None = None,
        frames: Tensor | None = None,
    ) -> None:
        """Tells the host; `done` is the share of this window."""
        fraction = (window.index + done) / len(self.windows)
        steps = self.config.sampling.steps
        self.host.report(Progress(stage, fraction, window.index + 1, len(self.windows), step, steps), latents, frames)
        self.host.check_cancelled()

    def check(self) -> None:
        """Looks at everything that can be known before a network runs.

        Raises:
            ConfigError: the audio, the picture, the speakers or the sizes do not fit the model or each other.
        """
        conditioning, embeds = self.conditioning, self.audio_embeds
        self.options.check(self.config)
        if conditioning.height % TOKEN_PIXELS or conditioning.width % TOKEN_PIXELS:
            raise ConfigError(
                f"The picture is {conditioning.width}x{conditioning.height}; "
                f"its sides must be multiples of {TOKEN_PIXELS}."
            )
        wanted = tuple(self.transformer.config.audio_features)
        if tuple(embeds.features.shape[2:]) != wanted:
            raise ConfigError(
                f"The audio embeds have {tuple(embeds.features.shape[2:])} layers x channels, the adapter wants "
                f"{wanted}. Encode the audio with chinese-wav2vec2-base."
            )
        _check_speakers(embeds.num_speakers, conditioning.speaker_masks)
        self._check_tokens()
        logger.info("%d frames in %d windows.", sum(_length(w.keep) for w in self.windows), len(self.windows))

    def _check_tokens(self) -> None:
        """Prompts of every window, and image tokens that stand for all of them."""
        conditioning, wanted = self.conditioning, self.transformer.config
        for prompt in conditioning.all_prompts:
            check_prompt(prompt.shape[1], wanted.text_dim)
            if len(prompt) > wanted.text_len:
                raise ConfigError(
                    f"A prompt has {len(prompt)} tokens, the model takes {wanted.text_len} at most. Cut it."
                )
        if conditioning.image_embeds is not None:
            check_image(conditioning.image_embeds.shape[1], wanted.image_dim)


def _check_speakers(num_voices: int, masks: Tensor | None) -> None:
    places = 1 if masks is None else len(masks) - 1
    if num_voices > 1 and places != num_voices:
        raise ConfigError(
            f"{num_voices} voices need as many places in the picture, got {places}. "
            f"Connect a speaker or a mask for each voice."
        )
    if num_voices > TRAINED_SPEAKERS:
        logger.warning(
            "%d speakers: the model was trained with %d at most, more is untrained territory.",
            num_voices,
            TRAINED_SPEAKERS,
        )


def _length(keep: slice) -> int:
    return keep.stop - keep.start
