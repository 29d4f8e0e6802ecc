"""Other nodes' IMAGE, AUDIO, MASK, CONDITIONING, VAE and embeds <-> engine tensors; alone in knowing both.

A value of another kind is refused in a sentence that names the input and what came.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor, nn

from ..pipeline.audio.embeds import AudioEmbeds
from ..pipeline.audio.waveform import Sound, check, to_float
from ..pipeline.conditioning.speakers import Place
from ..pipeline.errors import AudioError, ConfigError, ImageError
from ..pipeline.shapes import LATENT_CHANNELS, num_latent_frames

if TYPE_CHECKING:
    from comfy.sd import VAE

logger = logging.getLogger(__name__)


def from_audio(audio: object, name: str) -> Sound:
    """AUDIO to a sound: of a batch `b c n` the first, or one recording `c n` or `n`.

    Raises:
        AudioError: there is none, as from a video without sound, or it is of another shape, range or rate.
    """
    if audio is None:
        raise AudioError(f"{name} has no sound. Connect an audio, or a video that has sound.")
    if not isinstance(audio, Mapping):
        raise AudioError(f"{name} must be a sound, got {describe(audio)}. Connect an AUDIO.")
    waveform, rate_hz = audio.get("waveform"), audio.get("sample_rate")
    if not isinstance(waveform, Tensor) or waveform.ndim not in (1, 2, 3):
        raise AudioError(f"{name} must have a waveform `b c n`, got {describe(waveform)}. Connect an AUDIO.")
    if not waveform.numel():
        raise AudioError(f"{name} has no sound: its waveform has the shape {tuple(waveform.shape)}. Connect an audio.")
    if not isinstance(rate_hz, Real) or not math.isfinite(rate_hz):
        raise AudioError(f"{name} must have a sample_rate in Hz, got {describe(rate_hz)}. Connect an AUDIO.")
    if waveform.ndim == 3 and len(waveform) > 1:
        logger.info("%s is a batch of %d; the first is used.", name, len(waveform))
    recording = waveform[0] if waveform.ndim == 3 else waveform.reshape(-1, waveform.shape[-1])
    sound = Sound(to_float(recording.detach().cpu(), name), round(float(rate_hz)))
    check(sound, name)
    return sound


def to_audio(sound: Sound) -> dict:
    """A sound to AUDIO."""
    return {"waveform": sound.samples[None], "sample_rate": sound.rate_hz}


def from_image(image: object, name: str = "image") -> Tensor:
    """IMAGE, `b h w c`, as `to_rgb` takes each picture of it.

    Raises:
        ImageError: it is no batch of pictures.
    """
    if not isinstance(image, Tensor) or image.ndim != 4 or 0 in image.shape or image.shape[-1] > 4:
        raise ImageError(f"{name} must be a batch of pictures `b h w c`, got {describe(image)}. Connect an IMAGE.")
    return image.detach()


def to_image(frames: Tensor) -> Tensor:
    """The engine's frames (`c f h w`, -1..1) to IMAGE (`f h w c`, 0..1)."""
    return rearrange((frames + 1) / 2, "c f h w -> f h w c").clamp(0, 1).contiguous()


def from_masks(mask: object, name: str) -> list[Tensor]:
    """MASK (`b h w` or `h w`, 0..1) to one `h w` for each speaker.

    Raises:
        ImageError: it is no mask, or the masks are those of a video's frames, which are all of one person.
    """
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 3) or 0 in mask.shape or mask.is_complex():
        raise ImageError(f"{name} must be a mask `h w` or masks `b h w`, got {describe(mask)}. Connect a MASK.")
    masks = list(mask.detach() if mask.ndim == 3 else mask.detach()[None])
    if len(masks) > 2 and all(_overlap(masks[0], other) for other in masks[1:]):
        raise ImageError(
            f"{name} has {len(masks)} masks of the same place, as of the frames of a video. Give one for each speaker."
        )
    return masks


def from_mask(mask: object, name: str) -> Tensor:
    """MASK to one mask `h w`: of those of a video's frames the first."""
    if isinstance(mask, Tensor) and mask.ndim == 3 and len(mask) > 1:
        logger.info("%s is a batch of %d; the first is used.", name, len(mask))
        mask = mask[:1]
    return from_masks(mask, name)[0]


def to_mask(levels: Tensor) -> Tensor:
    """The transparency of a picture (uint8, `h w` or `h w c`) to MASK `1 h w`, 1 where nothing is seen.

    A picture without any has the empty mask of core's Load Image.
    """
    if levels.ndim == 2 or levels.shape[-1] not in (2, 4):
        return torch.zeros(1, 64, 64)
    return 1 - levels[None, ..., -1].float() / 255


def from_boxes(boxes: object, width: int, height: int, name: str) -> list[Place]:
    """BOUNDING_BOX to places in percent of a picture of `width x height` pixels.

    Args:
        boxes: one of `{x, y, width, height}` in pixels, several, or those of each picture of a batch: the first's.

    Raises:
        ImageError: they are something else, or one holds no pixel of the picture.
    """
    if isinstance(boxes, Mapping):
        boxes = [boxes]
    if isinstance(boxes, list) and boxes and isinstance(boxes[0], list):
        boxes = boxes[0]
    if not isinstance(boxes, list) or not all(map(_is_box, boxes)):
        raise ImageError(f"{name} must be boxes {{x, y, width, height}}, got {describe(boxes)}. Connect BOUNDING_BOX.")
    places = []
    for number, box in enumerate(boxes, start=1):
        left, top = max(0, box["x"]), max(0, box["y"])
        right, bottom = min(width, box["x"] + box["width"]), min(height, box["y"] + box["height"])
        if right <= left or bottom <= top:
            raise ImageError(f"Box {number} of {name} lies outside of {width}x{height} pixels. Draw it on the picture.")
        sides = (100 * left / width, 100 * top / height, 100 * right / width, 100 * bottom / height)
        places.append(Place(box=sides, percent=True))
    return places


def _is_box(box: object) -> bool:
    """A box of `x`, `y`, `width` and `height`, all of them finite numbers."""
    sides = [box.get(side) for side in ("x", "y", "width", "height")] if isinstance(box, Mapping) else [None]
    return all(isinstance(side, Real) and math.isfinite(side) for side in sides)


def from_conditioning(conditioning: object, name: str) -> Tensor:
    """CONDITIONING of Wan's text encoder to prompt embeddings `n d`; the rows of zeros that pad it are cut off.

    Raises:
        ConfigError: it holds no text embedding.
    """
    from ..pipeline.models.text_encoder import TEXT_LEN  # imports transformers, which takes seconds

    parts = conditioning if isinstance(conditioning, list | tuple) else []
    embeds = parts[0][0] if parts and isinstance(parts[0], list | tuple) and parts[0] else None
    if not isinstance(embeds, Tensor) or embeds.ndim != 3 or 0 in embeds.shape or not embeds.is_floating_point():
        came = describe(conditioning if embeds is None else embeds)
        raise ConfigError(f"{name} must hold a prompt's tokens `b n d`, got {came}. Connect CLIP Text Encode.")
    if len(parts) > 1:
        logger.info("%s has %d parts; the first is used.", name, len(parts))
    embeds = embeds[0].detach().float().cpu()
    tokens = embeds.abs().sum(1).nonzero()
    num_tokens = int(tokens[-1]) + 1 if len(tokens) else 1
    if num_tokens > TEXT_LEN:
        logger.warning("%s has %d tokens; the first %d are used.", name, num_tokens, TEXT_LEN)
    return embeds[: min(num_tokens, TEXT_LEN)]


def from_clip_vision(output: object, name: str) -> Tensor:
    """CLIP_VISION_OUTPUT to image tokens `i d`: those before the last block.

    Raises:
        ConfigError: it is none.
    """
    tokens = getattr(output, "penultimate_hidden_states", None)
    if not isinstance(tokens, Tensor) or tokens.ndim != 3 or 0 in tokens.shape:
        came = describe(output if tokens is None else tokens)
        raise ConfigError(f"{name} must be CLIP's tokens of a picture, got {came}. Connect CLIP Vision Encode.")
    return tokens[0].detach().float().cpu()


def from_kijai(embeds: object) -> AudioEmbeds:
    """WanVideoWrapper's `multitalk_embeds` to speech features: `n layers channels`, or one of them for each speaker.

    Raises:
        AudioError: they are of another kind, or of different shapes.
    """
    features = embeds.get("audio_features") if isinstance(embeds, Mapping) else None
    people = [features] if isinstance(features, Tensor) else features
    if not isinstance(people, list | tuple) or not people or not all(map(_is_features, people)):
        came = describe(people[0] if isinstance(people, list | tuple) and people else features)
        raise AudioError(
            f"multitalk_embeds must hold audio_features `n layers channels`, got {came}. Connect WanVideoWrapper's "
            f"MultiTalk node."
        )
    shapes = [tuple(person.shape) for person in people]
    if len(set(shapes)) > 1:
        raise AudioError(f"The speakers' embeds have different shapes ({shapes}). Encode them together.")
    return AudioEmbeds(torch.stack([person.detach().float().cpu() for person in people]), len(people[0]))


def describe(value: object) -> str:
    """A value in a few words, for messages: the type and shape of a tensor, the type of anything else."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of the shape {tuple(value.shape)}"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)[:40]
    return f"a {type(value).__name__}"


def _overlap(first: Tensor, second: Tensor) -> bool:
    """True for two masks that mark mostly the same pixels."""
    first, second = first > 0.5, second > 0.5
    return bool(2 * (first & second).sum() > torch.minimum(first.sum(), second.sum()))


def _is_features(person: object) -> bool:
    return isinstance(person, Tensor) and person.ndim == 3 and 0 not in person.shape and not person.is_complex()


class CoreVae:
    """ComfyUI's own VAE, as the engine's coder of frames. Its latents are Wan's before their normalisation."""

    def __init__(self, vae: VAE):
        if not all(hasattr(vae, name) for name in ("encode", "decode", "first_stage_model")):
            raise ConfigError(f"vae must be a VAE, got {describe(vae)}. Connect MultiTalk Load VAE or core's Load VAE.")
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
