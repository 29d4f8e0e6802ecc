"""All tensors that a window is denoised from."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..audio.embeds import AudioEmbeds
from ..conditioning.speakers import to_latent_masks
from ..shapes import LatentSize
from .recipes import WindowStart
from .windows import Window

if TYPE_CHECKING:  # imports diffusers, which takes seconds
    from ..conditioning.conditioning import Conditioning


@dataclass(frozen=True, eq=False)
class WindowTensors:
    """The conditions of one window, from which any device can denoise it.

    Attributes:
        condition: `20 t h w`, the mask and the latents of the known frames.
        image_embeds: `i d`, the image tokens.
        prompt_embeds: `n d`, unpadded.
        negative_embeds: `n d`, unpadded.
        audio: `p f window layers channels`, features around each video frame.
        speaker_masks: `classes h w` at latent size; None for one voice.
        motion_latents: `c t h w`, see `WindowStart`.
    """

    condition: Tensor
    image_embeds: Tensor
    prompt_embeds: Tensor
    negative_embeds: Tensor
    audio: Tensor
    speaker_masks: Tensor | None = None
    motion_latents: Tensor | None = None

    @classmethod
    def of(
        cls, window: Window, size: LatentSize, start: WindowStart, conditioning: Conditioning, audio_embeds: AudioEmbeds
    ) -> WindowTensors:
        """Those of a window that starts from `start`."""
        masks = conditioning.speaker_masks if audio_embeds.num_speakers > 1 else None
        return cls(
            condition=start.condition,
            image_embeds=start.image_embeds,
            prompt_embeds=conditioning.prompt_for(window.index),
            negative_embeds=conditioning.negative_embeds,
            audio=audio_embeds.window(window.feature_frames),
            speaker_masks=None if masks is None else to_latent_masks(masks, size),
            motion_latents=start.motion_latents,
        )

    def by_name(self) -> dict[str, Tensor]:
        """Those that there are."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def to(self, device: torch.device) -> WindowTensors:
        """The same on a device."""
        return WindowTensors(**{name: tensor.to(device) for name, tensor in self.by_name().items()})
