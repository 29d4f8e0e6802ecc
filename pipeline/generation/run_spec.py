"""A run before any weights are read: every choice with the model's defaults in place, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from torch import Tensor

from ..acceleration.presets import AccelerationOptions, make_guidance, preset
from ..audio.embeds import TAIL_FRAMES, num_model_frames
from ..conditioning.reference_image import bucket, check_size
from ..config import (
    AudioFeatures,
    ColorMatch,
    Fp8Products,
    GenerationConfig,
    GuidanceConfig,
    Recipe,
    Resolution,
    SamplerKind,
    WindowPlan,
)
from ..postprocess.apply import PostprocessConfig
from ..postprocess.color import FLASHTALK_DIGITS
from ..sampling.guidance import Guidance
from ..sampling.schedule import timesteps
from ..shapes import FPS, LatentSize
from .recipes import RECIPES, ModelDefaults
from .windows import Window, WindowConfig, WindowFit, plan_windows

FIRST_LOOK_FRAMES = 41
COLOR_FRAMES = 2 * FPS + 1  # that a steady match compares: colours drift in seconds, mouths move in tenths of them

T = TypeVar("T")


@dataclass(frozen=True)
class RunSpec:
    """A run's choices, none of them left open.

    Attributes:
        recipe: the model that is run.
        size: height and width; None while no picture is known.
        num_frames: of the video at 25 a second; None while its length is not known.
        num_speakers: voices, the silent ones too.
        num_features: rows of audio features for each speaker.
        fps: of the finished file.
        num_output_frames: of the finished file, at `fps`; None while its length is not known.
        acceleration_choice: the preset, or single knobs in its place.
    """

    recipe: Recipe
    size: tuple[int, int] | None
    num_frames: int | None
    num_speakers: int
    num_features: int
    fps: float
    seed: int
    steps: int
    shift: float
    skip_tail: bool
    sampler: SamplerKind
    guidance: GuidanceConfig
    windows_config: WindowConfig
    acceleration_choice: AccelerationOptions | None
    config: GenerationConfig
    color_strength: float
    color_match: ColorMatch
    deflicker: float
    num_output_frames: int | None

    @property
    def model(self) -> ModelDefaults:
        """The model's row."""
        return RECIPES[self.recipe]

    @property
    def resolution(self) -> Resolution:
        """The class of sizes that the video belongs to."""
        return self.config.resolution if self.size is None else Resolution.of(*self.size)

    @cached_property
    def acceleration(self) -> AccelerationOptions:
        """The knobs: those that were set one by one, or the preset's.

        Raises:
            ConfigError: the preset does not go with the steps and scales.
        """
        if self.acceleration_choice is not None:
            return self.acceleration_choice
        options = preset(self.config.acceleration, self.steps, self.guidance.text_scale)
        if self.config.fp8_products is Fp8Products.AUTO:
            return options
        return replace(options, fp8_products=self.config.fp8_products is Fp8Products.ON)

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        """The plan of context windows.

        Raises:
            ConfigError: the sizes do not fit each other or the length.
        """
        assert self.num_frames is not None, "the length is known before windows are planned"
        rows = [self.num_features] * self.num_speakers
        return tuple(plan_windows(self.num_frames, self.windows_config, rows))

    @property
    def streamed_windows(self) -> list[range]:
        """The frames of the windows that have speech features of their own; none where all share those of the whole."""
        if self.config.features is AudioFeatures.WHOLE:
            return []
        return [range(window.start, window.start + window.num_frames) for window in self.windows]

    @property
    def output_s(self) -> float:
        """Seconds of the finished file."""
        assert self.num_output_frames is not None, "the length is known before the file is written"
        return self.num_output_frames / self.fps

    @property
    def postprocess(self) -> PostprocessConfig:
        """Options for decoded frames; a single window keeps its colours, unless they are matched as published."""
        if self.color_match is ColorMatch.FRAME:
            return PostprocessConfig(
                self.color_strength, color_digits=FLASHTALK_DIGITS, deflicker=self.deflicker, fades_seam=False
            )
        if self.windows_config.plan is WindowPlan.PUBLISHED:
            return PostprocessConfig(self.color_strength, deflicker=self.deflicker, fades_seam=False)
        strength = self.color_strength if len(self.windows) > 1 else 0.0
        return PostprocessConfig(strength, COLOR_FRAMES, deflicker=self.deflicker)

    def latent_size(self, window: Window) -> LatentSize:
        """The size of a window's latents."""
        assert self.size is not None, "the size is known before latents are sized"
        return LatentSize.of_video(window.num_frames, *self.size)

    def timesteps(self) -> Tensor:
        """`steps+1` values of 1000..0."""
        return timesteps(self.steps, self.shift, self.skip_tail)

    def new_guidance(self) -> Guidance:
        """The guidance of one window; it remembers, so every window takes a new one."""
        return make_guidance(self.acceleration, self.guidance, self.steps)


def make_run_spec(
    config: GenerationConfig,
    recipe: Recipe,
    size: tuple[int, int] | None,
    num_frames: int | None,
    num_speakers: int = 1,
    num_features: int | None = None,
    acceleration: AccelerationOptions | None = None,
) -> RunSpec:
    """The run that a request makes of a model.

    Args:
        config: the choices; None in it takes the model's.
        recipe: the model.
        size: height and width of the video.
        num_frames: the speech's, at `config.fps`; it is the video's length where `config.num_frames` is 0.
        num_features: rows of audio features; None for audio that is encoded here, with its tail.
        acceleration: single knobs in place of the preset.
    """
    row = RECIPES[recipe]
    length, output_frames = config.num_frames or None, None if config.num_frames else num_frames
    if output_frames is not None:
        length = num_model_frames(output_frames, config.fps)
    if config.first_look and (length is None or length > FIRST_LOOK_FRAMES):
        length, output_frames = FIRST_LOOK_FRAMES, None
    if output_frames is None and length is not None:
        output_frames = max(1, round(length * config.fps / FPS))
    resolution = config.resolution if size is None else Resolution.of(*size)
    return RunSpec(
        recipe=recipe,
        size=size,
        num_frames=length,
        num_speakers=num_speakers,
        num_features=(length or 1) + TAIL_FRAMES if num_features is None else num_features,
        fps=config.fps,
        seed=config.seed,
        steps=_or(config.steps, row.steps),
        shift=_or(config.shift, row.shift[resolution]),
        skip_tail=_or(config.skip_tail, row.skip_tail),
        sampler=_or(config.sampler, row.sampler),
        guidance=GuidanceConfig(
            _or(config.text_scale, row.guidance.text_scale),
            _or(config.audio_scale, row.guidance.audio_scale),
            config.projected,
        ),
        windows_config=_windows_config(config, row),
        acceleration_choice=acceleration,
        config=config,
        color_strength=_or(config.color_strength, row.color_strength),
        color_match=_or(config.color_match, row.color_match),
        deflicker=_or(config.deflicker, row.deflicker),
        num_output_frames=output_frames,
    )


def _windows_config(config: GenerationConfig, row: ModelDefaults) -> WindowConfig:
    """The windows' sizes. A length that a person sets is kept: only a shorter request gets a shorter window."""
    own = row.published_frames if config.plan is WindowPlan.PUBLISHED else row.window_frames
    fit = row.window_fit
    if config.window_frames is not None and fit is WindowFit.EQUAL:
        fit = WindowFit.SHORTENED
    return WindowConfig(
        plan=config.plan,
        num_frames=_or(config.window_frames, own),
        motion_frames=_or(config.motion_frames, row.motion_frames),
        fit=fit,
        max_frames=config.max_frames,
        features=config.features,
        drops_mirrored_tail=row.drops_mirrored_tail,
    )


def _or(choice: T | None, default: T) -> T:
    return default if choice is None else choice


def choose_size(config: GenerationConfig, row: ModelDefaults, height: int, width: int) -> tuple[int, int]:
    """The height and width of the video of a picture: those asked for, or the model's nearest shape.

    Raises:
        ConfigError: a side that was asked for is no multiple of 16, or beyond all measure.
    """
    return check_size(*config.size) if config.size else bucket(height, width, row.sizes[config.resolution])
