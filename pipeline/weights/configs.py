"""The sizes of every network, read from the shapes of its weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isqrt, prod
from typing import TYPE_CHECKING, Any

from ..errors import WeightsError
from ..shapes import VAE_STRIDE_TIME
from .source import Source, num_heads_in, stated_number

if TYPE_CHECKING:  # a second to import, which headers alone do not need
    from transformers import CLIPVisionConfig, UMT5Config, Wav2Vec2Config

Shapes = Mapping[str, tuple[int, ...]]
"""Of all weights of a network, by our names."""

HEAD_DIM = 128  # of all Wan models
AUDIO_NORM = "audio_proj.norm"  # which some adapters were trained without
CLIP_HEAD_DIM = 80  # of ViT-H
SPEECH_HEAD_DIM = 64  # of all wav2vec2 models
SPEECH_STRIDES = (5, 2, 2, 2, 2, 2, 2)


@contextmanager
def sizes_from(name: str) -> Iterator[None]:
    """Context of sizes that are derived from a file's shapes.

    Raises:
        WeightsError: a shape is missing, or a network of these sizes cannot be.
    """
    try:
        yield
    except WeightsError:
        raise
    except (LookupError, ArithmeticError, ValueError, TypeError, RuntimeError) as error:
        raise WeightsError(
            f"{name} does not fit together: its shapes make no network ({str(error).rstrip('.')}); download it again."
        ) from error


def transformer_config(shapes: Shapes, sources: Sequence[Source]) -> dict[str, Any]:
    """Arguments of `MultiTalkTransformer`.

    Args:
        shapes: of base and adapter.
        sources: the files of both, base first, for the numbers that leave no trace in shapes. Where they do not state
            them, heads have 128 channels, and the speech encoder's layers are as wide as the audio tokens, as
            published.
    """
    width, in_channels, *patch = shapes["patch_embedding.weight"]
    heads = num_heads_in(sources[0]) or width // HEAD_DIM
    if not heads or width % heads:
        raise WeightsError(
            f"A width of {width} cannot be split into {heads} heads; state num_heads in its config.json."
        )
    audio_dim = shapes["blocks.0.audio_cross_attn.kv_linear.weight"][1]
    first_width, later_width = shapes["audio_proj.proj1.weight"][1], shapes["audio_proj.proj1_vf.weight"][1]
    feature_dim = (later_width - first_width) // (
        VAE_STRIDE_TIME - 1
    )  # later latent frames take w+3 features, the first w
    audio_layers = stated_number(sources, "audio_layers") or max(1, feature_dim // audio_dim)
    if feature_dim % audio_layers:
        raise WeightsError(
            f"{feature_dim} speech features cannot be of {audio_layers} layers; name audio_layers in "
            f"the adapter's metadata."
        )
    return {
        "patch_size": tuple(patch),
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": in_channels,
        "out_channels": shapes["proj_out.bias"][0] // prod(patch),
        "text_dim": shapes["condition_embedder.text_embedder.linear_1.weight"][1],
        "freq_dim": shapes["condition_embedder.time_embedder.linear_1.weight"][1],
        "ffn_dim": shapes["blocks.0.ffn.net.0.proj.bias"][0],
        "num_layers": count(shapes, r"blocks\.(\d+)\."),
        "image_dim": shapes["condition_embedder.image_embedder.norm1.weight"][0],
        "audio_window": first_width // feature_dim,
        "audio_features": (audio_layers, feature_dim // audio_layers),
        "audio_intermediate_dim": shapes["audio_proj.proj1.bias"][0],
        "audio_dim": audio_dim,
        "audio_tokens": shapes["audio_proj.proj3.bias"][0] // audio_dim,
        "audio_norm": f"{AUDIO_NORM}.weight" in shapes,
    }


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """Arguments of `AutoencoderKLWan`; LightVAE differs from Wan's own by its widths."""
    return {
        "base_dim": shapes["encoder.conv_in.weight"][0],
        "decoder_base_dim": shapes["decoder.norm_out.gamma"][0],
        "z_dim": shapes["post_quant_conv.weight"][0],
    }


def text_config(shapes: Shapes) -> UMT5Config:
    """umT5's encoder."""
    from transformers import UMT5Config

    attention, mlp = "encoder.block.0.layer.0.SelfAttention", "encoder.block.0.layer.1.DenseReluDense"
    vocabulary, width = shapes["shared.weight"]
    buckets, heads = shapes[f"{attention}.relative_attention_bias.weight"]
    config = UMT5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=shapes[f"{attention}.q.weight"][0] // heads,
        d_ff=shapes[f"{mlp}.wi_0.weight"][0],
        num_layers=count(shapes, r"encoder\.block\.(\d+)\."),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        dropout_rate=0.0,
    )
    config.tie_word_embeddings = False
    return config


def image_config(shapes: Shapes, num_heads: int | None = None) -> CLIPVisionConfig:
    """CLIP's vision tower, with the exact GELU that open-CLIP's ViT-H was trained with."""
    from transformers import CLIPVisionConfig

    width, _, patch, _ = shapes["embeddings.patch_embedding.weight"]
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=shapes["encoder.layers.0.mlp.fc1.bias"][0],
        num_hidden_layers=count(shapes, r"encoder\.layers\.(\d+)\."),
        num_attention_heads=num_heads or max(1, width // CLIP_HEAD_DIM),
        patch_size=patch,
        image_size=patch * isqrt(shapes["embeddings.position_embedding.weight"][0] - 1),
        hidden_act="gelu",
    )


def speech_config(shapes: Shapes, num_heads: int | None = None) -> Wav2Vec2Config:
    """wav2vec2's encoder."""
    from transformers import Wav2Vec2Config

    convolutions = [shapes[f"feature_extractor.conv_layers.{i}.conv.weight"] for i in range(len(SPEECH_STRIDES))]
    width, group_width, kernel = shapes["encoder.pos_conv_embed.conv.parametrizations.weight.original1"]
    return Wav2Vec2Config(
        hidden_size=width,
        intermediate_size=shapes["encoder.layers.0.feed_forward.intermediate_dense.bias"][0],
        num_hidden_layers=count(shapes, r"encoder\.layers\.(\d+)\."),
        num_attention_heads=num_heads or max(1, width // SPEECH_HEAD_DIM),
        conv_dim=[shape[0] for shape in convolutions],
        conv_kernel=[shape[2] for shape in convolutions],
        conv_stride=list(SPEECH_STRIDES),
        conv_bias=False,
        feat_extract_norm="group",
        num_conv_pos_embeddings=kernel,
        num_conv_pos_embedding_groups=width // group_width,
    )


def count(names: Iterable[str], pattern: str) -> int:
    """The number of layers, by the different numbers that `pattern` finds in names: where one lacks, the last shows."""
    matches = (re.match(pattern, name) for name in names)
    return len({match[1] for match in matches if match})
