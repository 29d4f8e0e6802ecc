"""Transformers with random weights and inputs to feed them, from a few tokens up to the published shapes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.models.transformer.inputs import PassInputs, WindowInputs
from pipeline.models.transformer.model import MultiTalkTransformer
from pipeline.sampling.guidance import Pass
from pipeline.shapes import LATENT_CHANNELS, MASK_CHANNELS, LatentSize, num_video_frames

IMAGE_TOKENS = 257
PROMPT_TOKENS = 60
LAYERS, CHANNELS = 12, 768  # of the speech features


@dataclass(frozen=True)
class Size:
    """Sizes of a network and a window; prompt, picture and audio adapter have the published widths unless `narrow`."""

    width: int
    layers: int
    heads: int
    ffn: int
    latents: LatentSize
    narrow: bool = False

    def label(self) -> str:
        """Text of the tokens, the width and the layers."""
        return f"{self.latents.num_tokens} tokens x {self.width}, {self.layers} layers"


SIZES = {
    "smoke": Size(64, 2, 2, 96, LatentSize(2, 4, 4), narrow=True),
    "tiny": Size(128, 2, 4, 512, LatentSize(5, 8, 8)),
    "small": Size(256, 4, 4, 1024, LatentSize(5, 16, 26)),
    "mid": Size(512, 8, 8, 2048, LatentSize(21, 20, 32)),
    "midl": Size(512, 8, 8, 2048, LatentSize(21, 30, 52)),
    "wide": Size(5120, 1, 40, 13824, LatentSize(5, 16, 26)),
    "480p": Size(5120, 8, 40, 13824, LatentSize(21, 60, 104)),  # 8 of the 40 blocks
    "720p": Size(5120, 8, 40, 13824, LatentSize(21, 90, 160)),
}


@dataclass(frozen=True)
class ForwardInputs:
    """Inputs of a forward besides latents and timestep; the same in all steps."""

    condition: Tensor  # 20 t h w
    image_embeds: Tensor  # i d
    prompt_embeds: Tensor  # n d
    audio: Tensor  # p f 5 layers channels
    speaker_masks: Tensor | None  # p+1 h w

    def window_inputs(self, transformer: MultiTalkTransformer) -> WindowInputs:
        """Window as the transformer takes it, with nothing computed yet."""
        size = LatentSize(*self.condition.shape[1:])
        return transformer.prepare_window(size, self.condition, self.image_embeds, self.speaker_masks)

    def pass_inputs(self, transformer: MultiTalkTransformer, window: WindowInputs | None = None) -> PassInputs:
        """Pass as the transformer takes it, in a window of its own or in one that it shares."""
        return transformer.prepare_pass(window or self.window_inputs(transformer), self.prompt_embeds, self.audio)


def random_transformer(size: Size, device: torch.device, dtype: torch.dtype = torch.float32) -> MultiTalkTransformer:
    """Transformer with random weights, none of them at zero, where errors would hide."""
    narrow = {
        "text_dim": 32, "text_len": 16, "image_dim": 24, "freq_dim": 32, "audio_features": (2, 6),
        "audio_intermediate_dim": 16, "audio_dim": 24, "audio_tokens": 4,
    }  # fmt: skip
    with torch.device(device):
        transformer = MultiTalkTransformer(
            num_attention_heads=size.heads,
            attention_head_dim=size.width // size.heads,
            ffn_dim=size.ffn,
            num_layers=size.layers,
            **(narrow if size.narrow else {}),
        ).eval()
    random = torch.Generator(device).manual_seed(0)
    for name, weight in transformer.requires_grad_(False).named_parameters():
        fan_in = weight[0].numel() if weight.ndim > 1 else 1
        weight.normal_(std=0.1 if weight.ndim == 1 else fan_in**-0.5, generator=random)
        if "norm" in name and name.endswith("weight"):
            weight.add_(1.0)
    return transformer.to(dtype)


def random_latents(size: Size, device: torch.device) -> Tensor:
    """Random latents `16 t h w`."""
    return torch.randn(size.latents.shape, generator=torch.Generator().manual_seed(1)).to(device)


def random_inputs(transformer: MultiTalkTransformer, size: Size, num_speakers: int = 1) -> dict[Pass, ForwardInputs]:
    """Random inputs of the three passes of full guidance; each speaker has an equal share of the picture's columns."""
    config, latents = transformer.config, size.latents
    random = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(transformer.device)

    condition = draw(MASK_CHANNELS + LATENT_CHANNELS, latents.t, latents.h, latents.w)
    image = draw(IMAGE_TOKENS, config.image_dim)
    prompts = [draw(min(PROMPT_TOKENS, config.text_len), config.text_dim) for _ in range(2)]
    frames = num_video_frames(latents.t)
    voices = draw(num_speakers, frames, config.audio_window, *config.audio_features)
    silence = transformer.zero_audio(frames).to(transformer.device)
    masks = _columns(num_speakers, latents).to(transformer.device) if num_speakers > 1 else None
    return {
        Pass.COND: ForwardInputs(condition, image, prompts[0], voices, masks),
        Pass.DROP_TEXT: ForwardInputs(condition, image, prompts[1], voices, masks),
        Pass.UNCOND: ForwardInputs(condition, image, prompts[1], silence, masks),
    }


def _columns(num_speakers: int, latents: LatentSize) -> Tensor:
    """Masks `p+1 h w`: a column for each speaker, the topmost quarter is background."""
    masks = torch.zeros(num_speakers + 1, latents.h, latents.w)
    top = latents.h // 4
    masks[-1, :top] = 1
    for mask, columns in zip(masks[:-1], torch.arange(latents.w).chunk(num_speakers), strict=True):
        mask[top:, columns] = 1
    return masks
