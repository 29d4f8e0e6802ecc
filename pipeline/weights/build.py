"""Networks from checked files: built empty, then filled with the files' tensors, most of them without a copy."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import init_empty_weights
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor, nn
from transformers import CLIPVisionModel, UMT5EncoderModel, Wav2Vec2Model

from ..errors import WeightsError
from ..models.image_encoder import ImageEncoder
from ..models.text_encoder import TextEncoder
from ..models.transformer.model import MultiTalkTransformer
from ..models.vae.video_vae import VideoVae
from .catalog import open_as, open_weights, transformer_weights
from .checkpoint import folder_settings
from .configs import image_config, sizes_from, speech_config, text_config, transformer_config, vae_config
from .key_maps import VISION, for_live_keys, rename_clip, rename_clip_key
from .quantization import QuantizedEmbedding, QuantizedLinear
from .recognition import Component
from .source import Source, num_heads_in, readable_shape
from .stored import StoredWeight, collect
from .tokenizer import find_tokenizer

logger = logging.getLogger(__name__)

Network = TypeVar("Network", bound=nn.Module)

EAGER = ("patch_embedding", "condition_embedder.time_", "proj_out")  # small, and read as plain numbers by the model


def load_transformer(
    base: Path | str, adapter: Path | str | None = None, dtype: torch.dtype = torch.bfloat16
) -> MultiTalkTransformer:
    """The video transformer with its audio adapter, from any packaging of either.

    Matrices stay as the files store them, backed by the files; the rest is read at once.

    Args:
        base: Wan2.1-I2V; or a file that holds the audio weights too, without `adapter`.
        adapter: the audio weights.
        dtype: of the activations.

    Raises:
        WeightsError: a file is damaged, of another kind, or does not fit the others.
    """
    weights, sources = transformer_weights(base, adapter)
    shapes = {name: weight.shape for name, weight in weights.items()}
    with sizes_from(sources[0].name), init_empty_weights():
        model = MultiTalkTransformer(**transformer_config(shapes, sources))
    _fill(model, weights, dtype, sources[0].name, eager=EAGER)
    return model.eval()


def load_vae(path: Path | str, dtype: torch.dtype = torch.float32) -> VideoVae:
    """Wan's video VAE in `dtype`, from native or diffusers names."""
    source, weights = open_weights(path, Component.VAE)
    state = _plain_state(source, weights, dtype)
    with sizes_from(source.name), init_empty_weights():
        model = AutoencoderKLWan(**vae_config({key: tensor.shape for key, tensor in state.items()}))
    return VideoVae(_load(model, state, source))


def load_text_encoder(path: Path | str, dtype: torch.dtype = torch.float32) -> TextEncoder:
    """umT5's encoder with its tokenizer; matrices stay as the file stores them.

    Args:
        path: the encoder.
        dtype: of the activations; float16 is too narrow for umT5.
    """
    source, weights = open_weights(path, Component.TEXT_ENCODER)
    tokenizer = find_tokenizer(source)
    with sizes_from(source.name), init_empty_weights():
        model = UMT5EncoderModel(text_config({name: weight.shape for name, weight in weights.items()}))
    weights["encoder.embed_tokens.weight"] = weights["shared.weight"]  # one table under two names
    _fill(model, weights, dtype, source.name, eager=("relative_attention_bias",))
    model.set_input_embeddings(model.shared)
    return TextEncoder(model.eval(), tokenizer)


def load_image_encoder(path: Path | str, dtype: torch.dtype | None = None) -> ImageEncoder:
    """CLIP's vision tower in `dtype`; None keeps the file's, or float16 where that is narrower."""
    source, _ = open_as(path, Component.IMAGE_ENCODER)
    weights = collect(source, _vision_key_of(source))
    plain, heads = _plain_state(source, weights, dtype), num_heads_in(source)
    with sizes_from(source.name), init_empty_weights():
        state = rename_clip(plain)
        model = CLIPVisionModel(image_config({key: tensor.shape for key, tensor in state.items()}, heads))
    return ImageEncoder(_load(model, for_live_keys(state, model.state_dict()), source))


def load_audio_encoder(path: Path | str) -> Wav2Vec2Model:
    """wav2vec2 in float32; its `config.do_normalize` is what the `preprocessor_config.json` states."""
    source, weights = open_weights(path, Component.AUDIO_ENCODER)
    state = _plain_state(source, weights, torch.float32)
    heads, preprocessor = num_heads_in(source), folder_settings(Path(path).expanduser(), "preprocessor_config.json")
    with sizes_from(source.name), init_empty_weights():
        config = speech_config({key: tensor.shape for key, tensor in state.items()}, heads)
        config.do_normalize = bool(preprocessor.get("do_normalize", False))
        model = Wav2Vec2Model(config)
    state.setdefault("masked_spec_embed", torch.zeros(config.hidden_size))  # only training uses it
    return _load(model, state, source)


def _fill(
    model: nn.Module, weights: Mapping[str, StoredWeight], dtype: torch.dtype, name: str, eager: tuple[str, ...]
) -> None:
    """Gives an empty `model` its weights.

    Matrices that are packed or in another narrow dtype stay so, in quantised layers; those of float32 are rounded to
    `dtype` at once, as are all vectors and the layers whose names have a part of `eager`.

    Raises:
        WeightsError: weights are missing, too many, or of another shape.
    """
    _check_names({key: weight.shape for key, weight in weights.items()}, model.state_dict(), name)
    for key, weight in weights.items():
        path, _, leaf = key.rpartition(".")
        module = model.get_submodule(path)
        can_stay = leaf == "weight" and not _reads_at_once(key, weight, dtype, eager)
        if can_stay and isinstance(module, nn.Linear):
            rows, columns = weight.shape
            model.set_submodule(path, QuantizedLinear(weight.packed(), (rows, columns), module.bias, dtype))
        elif can_stay and isinstance(module, nn.Embedding) and weight.packed().encoding.by_rows:
            model.set_submodule(path, QuantizedEmbedding(weight.packed(), dtype))
        else:
            setattr(module, leaf, nn.Parameter(weight.tensor(dtype), requires_grad=False))


def _reads_at_once(key: str, weight: StoredWeight, dtype: torch.dtype, eager: tuple[str, ...]) -> bool:
    is_same_or_wider = weight.is_plain and (weight.dtype is dtype or weight.dtype.itemsize > dtype.itemsize)
    return is_same_or_wider or any(part in key for part in eager)


def _load(model: Network, state: Mapping[str, Tensor], source: Source) -> Network:
    _check_names({key: tuple(tensor.shape) for key, tensor in state.items()}, model.state_dict(), source.name)
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def _check_names(shapes: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor], name: str) -> None:
    """Raises `WeightsError` where the shapes in a file are not those of a network's `state`."""
    missing = [key for key in state if key not in shapes]
    unexpected = [key for key in shapes if key not in state]
    if missing or unexpected:
        raise WeightsError(
            f"{name} does not hold what its model needs: {len(missing)} tensors are missing{_first(missing)}, "
            f"{len(unexpected)} are unknown{_first(unexpected)}; download a complete file."
        )
    for key, shape in shapes.items():
        if shape != tuple(state[key].shape):
            raise WeightsError(
                f"{name} does not fit together: {key} is {readable_shape(shape)}, wanted is "
                f"{readable_shape(state[key].shape)}; download it again."
            )


def _plain_state(source: Source, weights: Mapping[str, StoredWeight], dtype: torch.dtype | None) -> dict[str, Tensor]:
    packings = {weight.packing for weight in weights.values()}
    if any(packing.startswith(("fp8", "int8")) for packing in packings):
        logger.warning(
            "%s is stored in 8 bits, which this network was not made for: expect lower quality.", source.name
        )
    dtype = dtype or {"f32": torch.float32, "bf16": torch.bfloat16}.get(" ".join(packings), torch.float16)
    return {key: weight.tensor(dtype) for key, weight in weights.items()}


def _vision_key_of(source: Source) -> Callable[[str], str | None]:
    """The keys of the vision tower as they are. Where it has a prefix, what has none is the text tower's."""
    has_prefix = any(key.startswith(VISION) for key in source.entries)

    def vision_key(key: str) -> str | None:
        return key if rename_clip_key(key) and (key.startswith(VISION) or not has_prefix) else None

    return vision_key


def _first(keys: list[str]) -> str:
    return f" ({keys[0]}, ...)" if keys else ""
