"""How a window starts: MultiTalk goes on from its own last frames, InfiniteTalk always looks back at the reference."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..conditioning.conditioning import Conditioning
from ..conditioning.context_frames import condition, motion_latents
from ..config import Recipe
from ..sampling.denoise import Anchor, CleanMotion, NoAnchor, NoisedMotion
from ..sampling.noise import Noise
from ..shapes import MASK_CHANNELS, num_latent_frames
from .windows import Window


@dataclass(frozen=True)
class WindowStart:
    """What a window is given before its first step.

    Attributes:
        condition: `20 t h w`, the mask and the latents of the known frames.
        image_embeds: `i d`, the image tokens.
        anchor: how the known frames enter the noisy latents.
    """

    condition: Tensor
    image_embeds: Tensor
    anchor: Anchor


class Reference:
    """What the windows of an InfiniteTalk run look back at; encoded anew only where a dubbed video moves on."""

    def __init__(self) -> None:
        self._of, self._seen = None, None

    def seen(self, conditioning: Conditioning, window: Window) -> tuple[Tensor, Tensor]:
        """The condition `20 t h w` and the image tokens `i d` of the frame that is shown as `window` starts."""
        frame = min(window.start, conditioning.source.shape[1] - 1)
        if self._of != (frame, window.num_frames):
            picture = conditioning.source_frame(frame)
            conditions = condition(conditioning.vae, picture, window.num_frames)
            self._of, self._seen = (frame, window.num_frames), (conditions, conditioning.describe(picture[:, 0]))
        return self._seen


def start_window(
    recipe: Recipe,
    conditioning: Conditioning,
    window: Window,
    motion: Tensor | None,
    noise: Noise,
    reference: Reference,
) -> WindowStart:
    """The start of `window`; `motion` is `c m h w`, the last frames of the window before, None in the first."""
    if recipe is Recipe.INFINITETALK:
        return _look_back(conditioning, window, motion, reference)
    return _go_on(conditioning, window, motion, noise)


def _go_on(conditioning: Conditioning, window: Window, motion: Tensor | None, noise: Noise) -> WindowStart:
    """MultiTalk: the known frames are the image, later the motion frames, which the noise level follows."""
    known = conditioning.source_frame(0) if motion is None else motion
    conditions = condition(conditioning.vae, known, window.num_frames)
    anchor: Anchor = NoAnchor()
    if motion is not None:
        latents = conditions[MASK_CHANNELS:, : num_latent_frames(motion.shape[1])]
        anchor = NoisedMotion(latents, noise.motion(window.index, latents.shape))
    return WindowStart(conditions, conditioning.describe(known[:, -1]), anchor)


def _look_back(conditioning: Conditioning, window: Window, motion: Tensor | None, reference: Reference) -> WindowStart:
    """InfiniteTalk: the reference at the window's start is the condition, the motion latents stay clean."""
    conditions, image_embeds = reference.seen(conditioning, window)
    known = conditions[MASK_CHANNELS:, :1] if motion is None else motion_latents(conditioning.vae, motion)
    return WindowStart(conditions, image_embeds, CleanMotion(known))
