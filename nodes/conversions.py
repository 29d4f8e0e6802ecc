"""Core's IMAGE, AUDIO, MASK, CONDITIONING and VAE <-> engine tensors; alone in knowing both ranges and axis orders."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor, nn

from ..pipeline.audio.waveform import Sound
from ..pipeline.errors import AudioError, ConfigError, ImageError
from ..pipeline.shapes import LATENT_CHANNELS, num_latent_frames

if TYPE_CHECKING:
    from comfy.sd import VAE

logger = logging.getLogger(__name__)


def from_audio(audio: dict | None, name: str) -> Sound:
    """AUDIO (`b c n`, one of the batch) to a sound.

    Raises:
        AudioError: there is none, as from a video without sound.
    """
    if audio is not None and not isinstance(audio, Mapping):
        raise AudioError(f"{name} must be a sound, got {audio!r}. Connect an AUDIO.")
    if audio is None or audio["waveform"].numel() == 0:
        raise AudioError(f"{name} has no sound. Connect an audio, or a video that has sound.")
    waveform = audio["waveform"]
    if waveform.shape[0] > 1:
        logger.info("%s is a batch of %d; the first is used.", name, waveform.shape[0])
    return Sound(waveform[0].float().cpu(), int(audio["sample_rate"]))


def to_audio(sound: Sound) -> dict:
    """A sound to AUDIO."""
    return {"waveform": sound.samples[None], "sample_rate": sound.rate_hz}


def from_image(image: Tensor) -> Tensor:
    """IMAGE (`b h w c`, 0..1) to the engine's pictures: uint8 `b h w c`.

    Raises:
        ImageError: the batch is empty, or holds NaN or infinity.
    """
    if image.ndim != 4 or image.shape[0] == 0:
        raise ImageError(f"image must be a batch of pictures, got the shape {tuple(image.shape)}. Connect an IMAGE.")
    if not image.isfinite().all():
        raise ImageError("The image holds NaN or infinity. Whatever made it went wrong.")
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def to_image(frames: Tensor) -> Tensor:
    """The engine's frames (`c f h w`, -1..1) to IMAGE (`f h w c`, 0..1)."""
    return rearrange((frames + 1) / 2, "c f h w -> f h w c").clamp(0, 1).contiguous()


def from_masks(mask: Tensor) -> list[Tensor]:
    """MASK (`b h w` or `h w`, 0..1) to one `h w` for each speaker."""
    return list(mask[None] if mask.ndim == 2 else mask)


def from_conditioning(conditioning: list, name: str) -> Tensor:
    """CONDITIONING of Wan's text encoder to prompt embeddings `n d`; the rows of zeros that pad it are cut off.

    Raises:
        ConfigError: it holds no text embedding.
    """
    from ..pipeline.models.text_encoder import TEXT_LEN  # imports transformers, which takes seconds

    if not conditioning:
        raise ConfigError(f"{name} is empty. Connect CLIP Text Encode with the Wan text encoder.")
    if len(conditioning) > 1:
        logger.info("%s has %d parts; the first is used.", name, len(conditioning))
    embeds = conditioning[0][0][0].float().cpu()
    tokens = embeds.abs().sum(1).nonzero()
    num_tokens = int(tokens[-1]) + 1 if len(tokens) else 1
    if num_tokens > TEXT_LEN:
        logger.warning("%s has %d tokens; the first %d are used.", name, num_tokens, TEXT_LEN)
    return embeds[: min(num_tokens, TEXT_LEN)]


class CoreVae:
    """ComfyUI's own VAE, as the engine's coder of frames. Its latents are Wan's before their normalisation."""

    def __init__(self, vae: VAE):
        from ..pipeline.models.vae.video_vae import LATENT_MEAN, LATENT_STD  # imports diffusers, which takes seconds

        self._vae = vae
        self._mean = torch.tensor(LATENT_MEAN)[:, None, None, None]
        self._std = torch.tensor(LATENT_STD)[:, None, None, None]

    @property
    def model(self) -> nn.Module:
        """Its network; core's to move around."""
        return self._vae.first_stage_model

    def encode(self, frames: Tensor) -> Tensor:
        """`c f h w`, -1..1, to normalised latents `c t h w`."""
        pixels = rearrange((frames + 1) / 2, "c f h w -> f h w c")
        raw = self._vae.encode(pixels.cpu())[0].float().cpu()
        if raw.shape[0] != LATENT_CHANNELS or raw.shape[1] != num_latent_frames(frames.shape[1]):
            raise ConfigError(f"The VAE gave latents {tuple(raw.shape)}; Wan2.1's has 16 channels. Load wan_2.1_vae.")
        return (raw - self._mean) / self._std

    def encode_padded(self, frames: Tensor, num_frames: int) -> Tensor:
        """The latents of `frames` (`c k h w`) followed by mid-grey up to `num_frames`."""
        grey = frames.new_zeros(frames.shape[0], num_frames - frames.shape[1], *frames.shape[2:])
        return self.encode(torch.cat((frames, grey), 1))

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """Normalised latents `c t h w` to frames `c f h w`, -1..1, in one piece."""
        raw = latents.float().cpu() * self._std + self._mean
        pixels = self._vae.decode(raw[None])
        yield rearrange(pixels.reshape(-1, *pixels.shape[-3:]), "f h w c -> c f h w").float().cpu() * 2 - 1
