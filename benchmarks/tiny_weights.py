"""A complete set of random weights, small enough for a CPU, in files as users have them; and the shapes of any size.

Nothing in it was trained: it shows that every part runs and fits the others, not the quality of their work. Tensor
names are those of the published checkpoints, so the set goes the same way through the loaders as the real one.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, Wav2Vec2Config, Wav2Vec2Model

from pipeline.shapes import LATENT_CHANNELS, MASK_CHANNELS, PATCH_SPACE
from pipeline.weights.key_maps import native_clip_state, rename_vae

SENTENCES = (
    "A woman is talking to the camera in a warm room.",
    "A man sings on a stage while the lights change slowly.",
    "Two people sit at a table and speak, one after the other.",
    "bright tones, overexposed, static, blurred details, subtitles, worst quality, low quality",
    "The quick brown fox jumps over the lazy dog; 0123456789 times, perhaps more!",
)

State = dict[str, Tensor]


@dataclass(frozen=True)
class WeightSizes:
    """The sizes of a set, of a tiny one unless told. Head widths are the real ones: 128, 80 (CLIP), 64 (wav2vec2)."""

    width: int = 256
    layers: int = 2
    ffn: int = 512
    frequencies: int = 256
    text_width: int = 64
    text_layers: int = 2
    text_ffn: int = 128
    text_heads: int = 2
    image_width: int = 160
    image_layers: int = 3
    image_ffn: int = 320
    speech_width: int = 128
    speech_layers: int = 2
    speech_ffn: int = 256
    speech_convolution: int = 32
    audio_hidden: int = 32
    audio_width: int = 128
    audio_tokens: int = 4
    vae_width: int = 8


PUBLISHED = WeightSizes(
    width=5120, layers=40, ffn=13824, text_width=4096, text_layers=24, text_ffn=10240, text_heads=64, image_width=1280,
    image_layers=32, image_ffn=5120, speech_width=768, speech_layers=12, speech_ffn=3072, speech_convolution=512,
    audio_hidden=512, audio_width=768, audio_tokens=32, vae_width=96,
)  # fmt: skip


@dataclass(frozen=True)
class TinySet:
    """The files of a tiny set."""

    transformer: Path
    adapter: Path
    vae: Path
    text_encoder: Path
    image_encoder: Path
    audio_encoder: Path


def write_tiny(folder: Path | str, seed: int = 0, sizes: WeightSizes | None = None) -> TinySet:
    """Writes a complete tiny set into `folder` (made if missing) and returns its files."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sizes = sizes or WeightSizes()
    files = TinySet(
        transformer=folder / "wan2.1_i2v_480p_tiny.safetensors",
        adapter=folder / "multitalk_tiny.safetensors",
        vae=folder / "wan_2.1_vae_tiny.safetensors",
        text_encoder=folder / "umt5_tiny.safetensors",
        image_encoder=folder / "clip_vision_h_tiny.safetensors",
        audio_encoder=folder / "wav2vec2-chinese-base_tiny.safetensors",
    )
    parts = (tiny_transformer, tiny_adapter, tiny_vae, tiny_text_encoder, tiny_image_encoder, tiny_audio_encoder)
    for number, (path, make) in enumerate(zip(vars(files).values(), parts, strict=True)):
        save_file(make(sizes, torch.Generator().manual_seed(1000 * seed + number)), path)
    return files


def tiny_transformer(sizes: WeightSizes, generator: torch.Generator) -> State:
    """A Wan2.1 image-to-video transformer, native names."""
    return _random(dict(transformer_shapes(sizes)), generator)


def tiny_adapter(sizes: WeightSizes, generator: torch.Generator) -> State:
    """MultiTalk's audio weights alone, as in `multitalk.safetensors`."""
    return _random(dict(adapter_shapes(sizes)), generator)


def tiny_vae(sizes: WeightSizes, generator: torch.Generator) -> State:
    """A Wan2.1 video VAE, native names, with pixels and latents of about unit size."""
    state = _random(dict(vae_shapes(sizes)), generator)
    state["decoder.head.2.weight"] *= 0.5
    return state


def tiny_text_encoder(sizes: WeightSizes, generator: torch.Generator) -> State:
    """An umT5 encoder, ComfyUI's names, its tokenizer inside as `spiece_model`."""
    tokenizer = tiny_tokenizer()
    vocabulary = sentencepiece.SentencePieceProcessor(model_proto=tokenizer).vocab_size()
    state = _random(dict(text_encoder_shapes(sizes, vocabulary)), generator)
    state["spiece_model"] = torch.frombuffer(bytearray(tokenizer), dtype=torch.uint8)
    return state


def tiny_tokenizer() -> bytes:
    """A sentencepiece model of some dozen pieces, with umT5's special tokens (pad 0, end 1, unknown 2)."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=model, vocab_size=128, model_type="unigram",
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def tiny_image_encoder(sizes: WeightSizes, generator: torch.Generator) -> State:
    """A CLIP vision tower, native names."""
    return _random(dict(image_encoder_shapes(sizes)), generator)


def tiny_audio_encoder(sizes: WeightSizes, generator: torch.Generator) -> State:
    """A wav2vec2 base, named as in chinese-wav2vec2-base."""
    return _random(dict(audio_encoder_shapes(sizes)), generator)


def transformer_shapes(sizes: WeightSizes) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A Wan2.1 image-to-video transformer: native names and shapes."""
    width, image = sizes.width, sizes.image_width
    channels = 2 * LATENT_CHANNELS + MASK_CHANNELS
    yield "patch_embedding.weight", (width, channels, 1, PATCH_SPACE, PATCH_SPACE)
    yield "patch_embedding.bias", (width,)
    yield from _linear("text_embedding.0", sizes.text_width, width)
    yield from _linear("text_embedding.2", width, width)
    yield from _linear("time_embedding.0", sizes.frequencies, width)
    yield from _linear("time_embedding.2", width, width)
    yield from _linear("time_projection.1", width, 6 * width)
    yield from _norm("img_emb.proj.0", image)
    yield from _linear("img_emb.proj.1", image, image)
    yield from _linear("img_emb.proj.3", image, width)
    yield from _norm("img_emb.proj.4", width)
    for index in range(sizes.layers):
        yield from _block_shapes(f"blocks.{index}", width, sizes.ffn)
    yield "head.modulation", (1, 2, width)
    yield from _linear("head.head", width, PATCH_SPACE**2 * LATENT_CHANNELS)


def _block_shapes(block: str, width: int, ffn: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{block}.modulation", (1, 6, width)
    for name in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "cross_attn.k",
                 "cross_attn.v", "cross_attn.o", "cross_attn.k_img", "cross_attn.v_img"):  # fmt: skip
        yield from _linear(f"{block}.{name}", width, width)
    for name in ("self_attn.norm_q", "self_attn.norm_k", "cross_attn.norm_q", "cross_attn.norm_k",
                 "cross_attn.norm_k_img"):  # fmt: skip
        yield f"{block}.{name}.weight", (width,)
    yield from _norm(f"{block}.norm3", width)
    yield from _linear(f"{block}.ffn.0", width, ffn)
    yield from _linear(f"{block}.ffn.2", ffn, width)


def adapter_shapes(sizes: WeightSizes) -> Iterator[tuple[str, tuple[int, ...]]]:
    """MultiTalk's audio weights: native names and shapes."""
    frame = sizes.speech_layers * sizes.speech_width  # 5 of them go into latent frame 0, 8 into the others
    yield from _linear("audio_proj.proj1", 5 * frame, sizes.audio_hidden)
    yield from _linear("audio_proj.proj1_vf", 8 * frame, sizes.audio_hidden)
    yield from _linear("audio_proj.proj2", sizes.audio_hidden, sizes.audio_hidden)
    yield from _linear("audio_proj.proj3", sizes.audio_hidden, sizes.audio_tokens * sizes.audio_width)
    yield from _norm("audio_proj.norm", sizes.audio_width)
    for index in range(sizes.layers):
        yield from _linear(f"blocks.{index}.audio_cross_attn.q_linear", sizes.width, sizes.width)
        yield from _linear(f"blocks.{index}.audio_cross_attn.kv_linear", sizes.audio_width, 2 * sizes.width)
        yield from _linear(f"blocks.{index}.audio_cross_attn.proj", sizes.width, sizes.width)
        yield from _norm(f"blocks.{index}.norm_x", sizes.width)


def vae_shapes(sizes: WeightSizes) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A Wan2.1 video VAE: native names and shapes."""
    native = {rename_vae(key): key for key in _vae_candidates()}
    with torch.device("meta"):
        state = AutoencoderKLWan(base_dim=sizes.vae_width).state_dict()
    yield from ((native[key], tuple(tensor.shape)) for key, tensor in state.items())


def image_encoder_shapes(sizes: WeightSizes) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A CLIP vision tower: native names and shapes."""
    config = CLIPVisionConfig(
        hidden_size=sizes.image_width,
        intermediate_size=sizes.image_ffn,
        num_hidden_layers=sizes.image_layers,
        num_attention_heads=sizes.image_width // 80,
        patch_size=14,
    )
    with torch.device("meta"):
        state = native_clip_state(CLIPVisionModel(config).state_dict())
    yield from ((key, tuple(tensor.shape)) for key, tensor in state.items())


def audio_encoder_shapes(sizes: WeightSizes) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A wav2vec2 base: names of chinese-wav2vec2-base and shapes."""
    config = Wav2Vec2Config(
        hidden_size=sizes.speech_width,
        intermediate_size=sizes.speech_ffn,
        num_hidden_layers=sizes.speech_layers,
        num_attention_heads=sizes.speech_width // 64,
        conv_dim=(sizes.speech_convolution,) * 7,
    )
    with torch.device("meta"):
        state = Wav2Vec2Model(config).state_dict()
    yield from ((f"wav2vec2.{_published_speech_key(key)}", tuple(tensor.shape)) for key, tensor in state.items())


def _published_speech_key(key: str) -> str:
    key = key.replace("conv.parametrizations.weight.original0", "conv.weight_g")
    return key.replace("conv.parametrizations.weight.original1", "conv.weight_v")


def text_encoder_shapes(sizes: WeightSizes, vocabulary: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """An umT5 encoder with as many tokens: ComfyUI's names and shapes."""
    width, ffn = sizes.text_width, sizes.text_ffn
    yield "shared.weight", (vocabulary, width)
    for index in range(sizes.text_layers):
        block = f"encoder.block.{index}"
        for name in "qkvo":
            yield f"{block}.layer.0.SelfAttention.{name}.weight", (width, width)
        yield f"{block}.layer.0.SelfAttention.relative_attention_bias.weight", (32, sizes.text_heads)
        yield f"{block}.layer.0.layer_norm.weight", (width,)
        yield f"{block}.layer.1.DenseReluDense.wi_0.weight", (ffn, width)
        yield f"{block}.layer.1.DenseReluDense.wi_1.weight", (ffn, width)
        yield f"{block}.layer.1.DenseReluDense.wo.weight", (width, ffn)
        yield f"{block}.layer.1.layer_norm.weight", (width,)
    yield "encoder.final_layer_norm.weight", (width,)


def _linear(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _vae_candidates() -> Iterator[str]:
    """Native names that a VAE's weights may have; more than there are."""
    middle = (f"middle.{i}" for i in range(3))
    levels = (*(f"downsamples.{i}" for i in range(11)), *(f"upsamples.{i}" for i in range(15)))
    inner = ("conv1", "head.0", "head.2", *middle, *levels)
    positions = [f"{side}.{layer}" for side in ("encoder", "decoder") for layer in inner]
    residual = (f".residual.{i}" for i in (0, 2, 3, 6))
    layers = ("", ".shortcut", ".resample.1", ".time_conv", ".norm", ".to_qkv", ".proj", *residual)
    for position in (*positions, "conv1", "conv2"):
        for layer in layers:
            yield from (f"{position}{layer}.{name}" for name in ("weight", "bias", "gamma"))


def _random(shapes: dict[str, tuple[int, ...]], generator: torch.Generator) -> State:
    return {key: _random_tensor(key, shape, generator) for key, shape in shapes.items()}


def _random_tensor(key: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Scales around 1, which keep the size of activations; nothing is zero, as nothing in a trained network is."""
    noise = torch.randn(shape, generator=generator)
    if key.endswith("bias"):
        return 0.02 * noise
    is_scale = key.endswith(("gamma", "weight_g")) or (key.endswith("weight") and len(shape) == 1)
    if is_scale:
        return 1 + 0.1 * noise
    fan_in = math.prod(shape[1:]) if len(shape) > 1 else shape[0]
    return noise / math.sqrt(fan_in)
