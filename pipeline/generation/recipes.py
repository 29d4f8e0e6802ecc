"""The defaults of each model, a row for each, and the start of a window."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from ..conditioning.context_frames import condition, motion_latents
from ..conditioning.reference_image import BUCKETS, Buckets
from ..config import ColorMatch, GuidanceConfig, Recipe, Resolution, SamplerKind
from ..sampling.denoise import Anchor, CleanMotion, NoAnchor, NoisedMotion
from ..sampling.noise import Noise
from ..shapes import MASK_CHANNELS, num_latent_frames
from .windows import Window, WindowFit

if TYPE_CHECKING:  # imports diffusers, which takes seconds
    from ..conditioning.conditioning import Conditioning

TRAINED_NUM_FRAMES = 81
LONGEST_EQUAL_WINDOW = 97  # a little over the trained length, where it saves a window; the authors go up to 201
FLASHTALK_SIZES: Mapping[Resolution, Buckets] = {  # the one size that it was distilled at, and the family's
    **BUCKETS,
    Resolution.P480: {**BUCKETS[Resolution.P480], 1.71: (768, 448), 0.58: (448, 768)},
}
SMALL_SIZES = {1.0: (128, 128), 0.67: (128, 192)}  # of the bundled model: one drawn face, and two side by side


@dataclass(frozen=True)
class WindowStart:
    """The inputs of a window before its first step.

    Attributes:
        condition: `20 t h w`, the mask and the latents of the known frames.
        picture: `c h w`, -1..1, the first known frame, which the first latent frame of the condition encodes.
        image_embeds: `i d`, the image tokens.
        motion_latents: `c t h w`, of the known frames that the noisy latents are held to; None where there are none.
    """

    condition: Tensor
    picture: Tensor
    image_embeds: Tensor
    motion_latents: Tensor | None


class ReferenceCache:
    """The encoded reference that InfiniteTalk's windows share; encoded anew only where a dubbed video moves on."""

    def __init__(self) -> None:
        self._key: tuple[int, int] | None = None
        self._encoded: tuple[Tensor, Tensor] | None = None

    def encode(self, conditioning: Conditioning, window: Window) -> tuple[Tensor, Tensor]:
        """The condition `20 t h w` and the image tokens `i d` of the frame that is shown as `window` starts."""
        frame = min(window.start, len(conditioning.source) - 1)
        key = (frame, window.num_frames)
        if self._encoded is None or self._key != key:
            picture = conditioning.source_frame(frame)
            conditions = condition(conditioning.vae, picture, window.num_frames)
            self._key, self._encoded = key, (conditions, conditioning.image_tokens(picture[:, 0]))
        return self._encoded


class StartWindow(Protocol):
    """The start of a window from the picture and the last frames of the window before."""

    def __call__(
        self, conditioning: Conditioning, window: Window, motion_frames: Tensor | None, reference: ReferenceCache
    ) -> WindowStart:
        """`motion_frames` are `c m h w`, None in the first window."""
        ...


def continue_motion(
    conditioning: Conditioning, window: Window, motion_frames: Tensor | None, reference: ReferenceCache
) -> WindowStart:
    """MultiTalk: the known frames are the image, later the motion frames, which the noise level follows.

    Args:
        motion_frames: `c m h w`, the last frames of the window before; None in the first.
        reference: not used.
    """
    frames = conditioning.source_frame(0) if motion_frames is None else motion_frames
    conditions = condition(conditioning.vae, frames, window.num_frames)
    latents = None
    if motion_frames is not None:
        latents = conditions[MASK_CHANNELS:, : num_latent_frames(motion_frames.shape[1])]
    return WindowStart(conditions, frames[:, 0], conditioning.image_tokens(frames[:, -1]), latents)


def return_to_reference(
    conditioning: Conditioning, window: Window, motion_frames: Tensor | None, reference: ReferenceCache
) -> WindowStart:
    """InfiniteTalk and FlashTalk: the reference at the window's start is the condition, the motion latents stay clean.

    Args:
        motion_frames: `c m h w`, the last frames of the window before; None in the first.
        reference: encoded once for all windows that start from the same frame.
    """
    conditions, image_embeds = reference.encode(conditioning, window)
    if motion_frames is None:
        latents = conditions[MASK_CHANNELS:, :1]
    else:
        latents = motion_latents(conditioning.vae, motion_frames)
    picture = conditioning.source_frame(window.start)[:, 0]
    return WindowStart(conditions, picture, image_embeds, latents)


def make_anchor(model: ModelDefaults, motion_latents: Tensor | None, noise: Noise, window: int) -> Anchor:
    """The constraint that holds window number `window`, from 0, to its motion latents; None of them holds it free."""
    if motion_latents is None:
        return NoAnchor()
    if model.keeps_motion_clean:
        return CleanMotion(motion_latents)
    return NoisedMotion(motion_latents, noise.motion(window, motion_latents.shape))


@dataclass(frozen=True)
class ModelDefaults:
    """A model's row: what a run takes where a person leaves the choice to it.

    Attributes:
        name: for people.
        file_pattern: finds the model by the name of its audio weights, or of their folder; nothing inside them tells.
        start_window: how a window starts.
        shift: of the noise schedule, by resolution.
        sizes: (height, width) by aspect ratio, for each resolution.
        guidance: scales.
        window_frames: of a window at most.
        motion_frames: handed on to the next window.
        window_fit: how windows fit a request.
        color_match: the frames whose colours are compared.
        deflicker: grey levels of 255.
        drops_mirrored_tail: of the published plan, see `WindowConfig`.
        sampler: the step that it was trained, or distilled, for.
        max_speakers: that it was trained with.
        dubs_video: whether the picture may be a video.
        keeps_motion_clean: whether motion latents stay clean at every noise level, or follow it.
    """

    name: str
    file_pattern: re.Pattern
    start_window: StartWindow
    shift: Mapping[Resolution, float]
    sizes: Mapping[Resolution, Buckets]
    guidance: GuidanceConfig = GuidanceConfig()
    steps: int = 40
    skip_tail: bool = False
    sampler: SamplerKind = SamplerKind.EULER
    window_frames: int = TRAINED_NUM_FRAMES
    published_frames: int = TRAINED_NUM_FRAMES
    motion_frames: int = 25
    window_fit: WindowFit = WindowFit.EQUAL
    color_strength: float = 1.0
    color_match: ColorMatch = ColorMatch.STEADY
    deflicker: float = 0.0
    drops_mirrored_tail: bool = True
    max_speakers: int = 2
    dubs_video: bool = False
    keeps_motion_clean: bool = False


_WAN_SHIFT = {Resolution.P480: 7.0, Resolution.P720: 11.0}

RECIPES: Mapping[Recipe, ModelDefaults] = {
    Recipe.BUNDLED: ModelDefaults(
        name="the bundled model",
        file_pattern=re.compile(r"_demo\.\w+$"),
        start_window=continue_motion,
        shift=_WAN_SHIFT,
        guidance=GuidanceConfig(text_scale=1.5, audio_scale=1.5),  # more burns the small model's colours
        steps=20,
        window_frames=LONGEST_EQUAL_WINDOW,
        sizes=dict.fromkeys(Resolution, SMALL_SIZES),
        deflicker=3.0,  # grey levels that the small VAE's walls flicker by
    ),
    Recipe.INFINITETALK: ModelDefaults(
        name="InfiniteTalk",
        file_pattern=re.compile("infinite", re.IGNORECASE),
        start_window=return_to_reference,
        shift=_WAN_SHIFT,
        sizes=BUCKETS,
        motion_frames=9,
        window_fit=WindowFit.SHORTENED,
        drops_mirrored_tail=False,
        dubs_video=True,
        keeps_motion_clean=True,
    ),
    Recipe.FLASHTALK: ModelDefaults(
        name="FlashTalk",
        file_pattern=re.compile("flash[ _-]?talk", re.IGNORECASE),
        start_window=return_to_reference,
        shift=dict.fromkeys(Resolution, 5.0),
        sizes=FLASHTALK_SIZES,
        guidance=GuidanceConfig(text_scale=1.0, audio_scale=1.0),
        steps=4,
        skip_tail=True,
        sampler=SamplerKind.RENOISE,
        keeps_motion_clean=True,
        window_frames=33,
        motion_frames=5,
        window_fit=WindowFit.FIXED,
        max_speakers=1,
    ),
    Recipe.MULTITALK: ModelDefaults(
        name="MultiTalk",
        file_pattern=re.compile("multi[ _-]?talk", re.IGNORECASE),
        start_window=continue_motion,
        shift=_WAN_SHIFT,
        sizes=BUCKETS,
        window_frames=LONGEST_EQUAL_WINDOW,
    ),
}


def find_recipe(weights: Path | None) -> Recipe:
    """The recipe of audio weights by the name of their file, or of its folder where that says nothing, as shards'.

    MultiTalk where neither does.
    """
    names = () if weights is None else (weights.name, weights.absolute().parent.name)
    recipes = (recipe for name in names for recipe, row in RECIPES.items() if row.file_pattern.search(name))
    return next(recipes, Recipe.MULTITALK)
