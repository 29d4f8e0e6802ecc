"""A tiny transformer with random weights, or with those of a golden file."""

from collections.abc import Mapping

import torch
from multitalk_pack.pipeline.models.transformer.inputs import PassInputs, WindowInputs
from multitalk_pack.pipeline.models.transformer.model import MultiTalkTransformer
from multitalk_pack.pipeline.shapes import LatentSize, num_video_frames
from multitalk_pack.pipeline.weights.key_maps import rename_transformer
from torch import Tensor

from support.golden import Golden

SIZE = LatentSize(3, 4, 6)
PEOPLE = 2


def from_golden(golden: Golden) -> MultiTalkTransformer:
    """The transformer of a golden file, sizes and weights."""
    transformer = MultiTalkTransformer(**sizes(golden.config)).eval()
    state = {rename_transformer(key): value for key, value in golden.state().items()}
    transformer.load_state_dict(state, strict=True)
    return transformer


def sizes(config: Mapping) -> dict:
    """Our arguments for a golden file's sizes."""
    return {
        "patch_size": tuple(config["patch_size"]),
        "num_attention_heads": config["num_heads"],
        "attention_head_dim": config["dim"] // config["num_heads"],
        "in_channels": config["in_dim"],
        "out_channels": config["out_dim"],
        "text_dim": config["text_dim"],
        "freq_dim": config["freq_dim"],
        "ffn_dim": config["ffn_dim"],
        "num_layers": config["num_layers"],
        "text_len": config["text_len"],
        "image_dim": config["clip_dim"],
        "eps": config["eps"],
        "audio_window": config["audio_window"],
        "audio_features": (config["audio_blocks"], config["audio_channels"]),
        "audio_intermediate_dim": config["intermediate_dim"],
        "audio_dim": config["output_dim"],
        "audio_tokens": config["context_tokens"],
    }


def tiny(seed: int = 0, num_layers: int = 2, num_heads: int = 2) -> MultiTalkTransformer:
    """A transformer whose random weights leave no path at zero."""
    transformer = MultiTalkTransformer(
        num_attention_heads=num_heads, attention_head_dim=32, text_dim=20, freq_dim=16, ffn_dim=96,
        num_layers=num_layers, text_len=8, image_dim=12, audio_features=(2, 6), audio_intermediate_dim=16,
        audio_dim=24, audio_tokens=4,
    ).eval()  # fmt: skip
    random = torch.Generator().manual_seed(seed)
    for parameter in transformer.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        parameter.data = torch.randn(parameter.shape, generator=random) / fan_in**0.5
    return transformer


def window_inputs(transformer: MultiTalkTransformer, size: LatentSize = SIZE, seed: int = 1) -> WindowInputs:
    """A random window of two persons, one to the left and one to the right of the background."""
    random = torch.Generator().manual_seed(seed)
    condition = torch.randn(20, size.t, size.h, size.w, generator=random)
    image_embeds = torch.randn(5, transformer.config.image_dim, generator=random)
    return transformer.prepare_window(size, condition, image_embeds, speaker_masks(size))


def speaker_masks(size: LatentSize = SIZE) -> Tensor:
    """`classes h w`: a left person, a right one, and the background between them."""
    masks = torch.zeros(PEOPLE + 1, size.h, size.w)
    masks[0, :, :2], masks[1, :, -2:], masks[2, :, 2:-2] = 1, 1, 1
    return masks


def voices(transformer: MultiTalkTransformer, num_speakers: int = 1, size: LatentSize = SIZE, seed: int = 2) -> Tensor:
    """Random audio windows, `p f window layers channels`."""
    random = torch.Generator().manual_seed(seed)
    config = transformer.config
    shape = (num_speakers, num_video_frames(size.t), config.audio_window, *config.audio_features)
    return torch.randn(shape, generator=random)


def prompt(transformer: MultiTalkTransformer, num_tokens: int = 5, seed: int = 3) -> Tensor:
    """Random prompt embeddings, `n d`."""
    return torch.randn(num_tokens, transformer.config.text_dim, generator=torch.Generator().manual_seed(seed))


def latents(size: LatentSize = SIZE, seed: int = 4) -> Tensor:
    """Random latents, `16 t h w`."""
    return torch.randn(size.shape, generator=torch.Generator().manual_seed(seed))


def pass_inputs(transformer: MultiTalkTransformer, num_speakers: int = 1, size: LatentSize = SIZE) -> PassInputs:
    """A fresh pass of a fresh window."""
    audio = voices(transformer, num_speakers, size)
    return transformer.prepare_pass(window_inputs(transformer, size), prompt(transformer), audio)
