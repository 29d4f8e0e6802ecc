"""The picture, the prompt and the speakers' places of a run, fitted and encoded."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..audio.embeds import AudioEmbeds
from ..errors import ConfigError
from ..media.pixels import from_uint8
from ..models.image_encoder import ImageEncoder
from ..models.vae.tiling import Tiling
from ..models.vae.video_vae import VideoCoder, VideoVae
from .speakers import Place, speaker_masks

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conditioning:
    """A fitted portrait, its encoded prompts, and the coders that later windows need again.

    Attributes:
        source: uint8 `f h w c`, fitted. One frame is a still image; more are a video to dub (InfiniteTalk).
        prompt_embeds: one `n d` for each window, unpadded; the last serves all windows that follow.
        negative_embeds: `n d`, unpadded.
        vae: turns frames into latents and back.
        image_encoder: tells a window's image; None where `image_embeds` is given.
        image_embeds: `i d`, the same for all windows, from a node that encoded the image already.
        speaker_masks: `classes h w` at pixel size, the speakers and then the background; None where nobody is placed.
        image_hw: height and width of the picture before it was fitted; None where it was not.
    """

    source: Tensor
    prompt_embeds: tuple[Tensor, ...]
    negative_embeds: Tensor
    vae: VideoCoder
    image_encoder: ImageEncoder | None = None
    image_embeds: Tensor | None = None
    speaker_masks: Tensor | None = None
    image_hw: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not self.prompt_embeds:
            raise ConfigError("There is no prompt. Encode one; it may be empty.")
        if self.image_encoder is None and self.image_embeds is None:
            raise ConfigError("The image is not encoded. Give an image encoder, or the output of CLIP Vision Encode.")
        for name, tokens in (("prompt", self.all_prompts), ("image", (self.image_embeds,))):
            if not all(part is None or part.isfinite().all() for part in tokens):
                raise ConfigError(f"The {name}'s tokens hold NaN or infinity. Run its encoder in bfloat16 or float32.")

    @property
    def height(self) -> int:
        """Pixels."""
        return self.source.shape[1]

    @property
    def width(self) -> int:
        """Pixels."""
        return self.source.shape[2]

    @property
    def num_places(self) -> int:
        """Speakers that are told apart in the picture; 1 where nobody is."""
        return 1 if self.speaker_masks is None else len(self.speaker_masks) - 1

    @property
    def all_prompts(self) -> tuple[Tensor, ...]:
        """Those of the windows, and the negative one."""
        return (*self.prompt_embeds, self.negative_embeds)

    def prompt_for(self, window: int) -> Tensor:
        """The prompt `n d` of window number `window`, counted from 0."""
        return self.prompt_embeds[min(window, len(self.prompt_embeds) - 1)]

    def source_frame(self, frame: int) -> Tensor:
        """`c 1 h w`, -1..1: the source at video frame `frame`; past its end the last frame stays."""
        levels = self.source[min(frame, len(self.source) - 1)]
        return from_uint8(levels).permute(2, 0, 1)[:, None].contiguous()

    def image_tokens(self, frame: Tensor) -> Tensor:
        """`i d`: CLIP's tokens of `frame` (`c h w`, -1..1), or those that were given for all windows."""
        if self.image_embeds is not None:
            return self.image_embeds
        assert self.image_encoder is not None, "checked when this was made"
        return self.image_encoder.encode(frame)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Our own coders' networks, on which the frames depend; others' are not ours to look into."""
        return *self.vae_networks, *([] if self.image_encoder is None else [self.image_encoder.model])

    @property
    def vae_networks(self) -> tuple[nn.Module, ...]:
        """The VAE's network, if it is our own."""
        return (self.vae.model,) if isinstance(self.vae, VideoVae) else ()

    @property
    def can_tile(self) -> bool:
        """The VAE works on whole frames and could work on tiles, in less memory."""
        return isinstance(self.vae, VideoVae) and self.vae.tiling is None

    def tiled(self) -> Conditioning:
        """The same with a VAE that works on tiles."""
        assert isinstance(self.vae, VideoVae), "asked of `can_tile` first"
        return replace(self, vae=VideoVae(self.vae.model, Tiling()))


def match_speakers(audio_embeds: AudioEmbeds, conditioning: Conditioning) -> tuple[AudioEmbeds, Conditioning]:
    """A place for each voice, and a voice for each place.

    Several voices without places share the width, from left to right. One voice with a place moves this mouth alone:
    the rest of the picture is a listener whose voice is silent.
    """
    num_voices, masks = audio_embeds.num_speakers, conditioning.speaker_masks
    if masks is None and num_voices > 1:
        size = (conditioning.height, conditioning.width)
        shares = speaker_masks([Place()] * num_voices, conditioning.image_hw or size, size)
        return audio_embeds, replace(conditioning, speaker_masks=shares)
    if masks is None or num_voices > 1:
        return audio_embeds, conditioning
    if audio_embeds.silence is None:
        logger.warning("The only speaker's place is not used: these audio embeds know no silence for a listener.")
        return audio_embeds, replace(conditioning, speaker_masks=None)
    speaker = masks[:1]
    with_listener = torch.cat((speaker, 1 - speaker, torch.zeros_like(speaker)))
    return audio_embeds.with_listener(), replace(conditioning, speaker_masks=with_listener)
