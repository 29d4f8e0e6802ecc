"""The sampler's settings, as the sampler and the preflight take them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..pipeline.audio.embeds import AudioEmbeds
from ..pipeline.config import Acceleration, GenerationConfig, GuidanceConfig, Recipe, Resolution, SamplingConfig
from ..pipeline.preflight.checks import Draft
from ..pipeline.weights.fit import WeightFiles
from ..pipeline.weights.handles import TransformerFiles
from . import folders
from .options import SamplerOptions

if TYPE_CHECKING:
    from ..pipeline.conditioning.conditioning import Conditioning

FIRST_LOOK_FRAMES = 41


@dataclass(frozen=True)
class Settings:
    """The sampler's widgets, by their names, and what the options nodes add."""

    num_frames: int
    steps: int
    text_cfg_scale: float
    audio_cfg_scale: float
    shift: float
    acceleration: str
    keep_frames: bool
    options: SamplerOptions
    seed: int = SamplingConfig.seed

    def config(self, recipe: Recipe, resolution: Resolution) -> GenerationConfig:
        """The request.

        Raises:
            ConfigError: a value is out of range, or the recipe's windows do not fit the motion frames.
        """
        options, asked = self.options, self.num_frames
        return GenerationConfig(
            num_frames=min(FIRST_LOOK_FRAMES, asked or FIRST_LOOK_FRAMES) if options.first_look else asked,
            resolution=resolution,
            acceleration=Acceleration(self.acceleration),
            allow_long=True,
            sampling=SamplingConfig(self.steps, self.shift or None, self.seed, options.skip_tail),
            guidance=GuidanceConfig(self.text_cfg_scale, self.audio_cfg_scale, options.projected),
            windows=replace(options.windows, recipe=recipe),
            color_strength=options.color_strength,
            deflicker=options.deflicker,
        )

    def draft(self, model: TransformerFiles, config: GenerationConfig) -> Draft:
        """What is known of a run by the model and the settings alone."""
        runs = folders.runs_directory()
        return Draft(
            config,
            options=self.options.acceleration,
            memory=model.memory,
            files=WeightFiles(model.base, model.adapter, model.loras),
            dtype=model.dtype,
            runs=runs if self.options.resume else None,
            speeds=runs,
            keeps_frames=self.keep_frames,
        )


def hearing(draft: Draft, embeds: AudioEmbeds) -> Draft:
    """`draft` with speech that is encoded."""
    return replace(
        draft,
        num_frames=draft.config.num_frames or embeds.num_frames,
        num_voices=embeds.num_speakers,
        num_heard=embeds.num_frames,
        audio_features=tuple(embeds.features.shape[2:]),
    )


def seeing(draft: Draft, conditioning: Conditioning) -> Draft:
    """`draft` with a picture that is encoded."""
    masks, image = conditioning.speaker_masks, conditioning.image_embeds
    return replace(
        draft,
        target=(conditioning.height, conditioning.width),
        num_source_frames=conditioning.source.shape[1],
        prompt_channels=tuple(prompt.shape[1] for prompt in conditioning.all_prompts),
        image_channels=None if image is None else image.shape[1],
        num_places=1 if masks is None else len(masks) - 1,
    )
