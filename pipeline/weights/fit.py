"""Whether the files of a run fit each other, told from their headers alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from ..errors import Problems, WeightsError
from ..memory.placement import Footprint
from .catalog import (
    Weights,
    check_audio_encoder,
    check_image_encoder,
    check_text_encoder,
    check_vae,
    open_as,
    transformer_weights,
)
from .configs import count, sizes_from, transformer_config
from .key_maps import native_transformer_key, rename_clip_key, rename_text, rename_wav2vec2
from .lora import OTHER_MODELS, refuse_special
from .lora_layouts import DOWN, UP, check_whole, split_key
from .recognition import Component
from .source import Source
from .stored import collect
from .tokenizer import check_tokenizer

FEW_STEP_NAMES = re.compile(r"lightx2v|fusionx|distill|lightning|causvid|accvid|\b[48]_?steps?\b", re.IGNORECASE)
BLOCK = re.compile(r"blocks\.(\d+)\.")


class WeightFiles(Protocol):
    """The files of a run, as `model_files.ModelFiles` names them; None where something else does a file's work."""

    base: Path | None
    adapter: Path | None
    loras: tuple[tuple[Path, float], ...]
    vae: Path | None
    text_encoder: Path | None
    image_encoder: Path | None
    audio_encoder: Path | None
    allow_other: bool


def few_step_lora(loras: Iterable[tuple[Path, float]]) -> str | None:
    """The name of a LoRA that was made for few steps, as far as names tell."""
    return next((path.name for path, _ in loras if FEW_STEP_NAMES.search(path.stem)), None)


@dataclass(frozen=True)
class TransformerFacts:
    """What the headers tell of the transformer.

    Attributes:
        audio_features: layers and channels of the speech features that it hears.
        text_dim: channels of a prompt token.
        image_dim: channels of an image token.
    """

    footprint: Footprint
    audio_features: tuple[int, int]
    text_dim: int
    image_dim: int


def check_weights(files: WeightFiles, dtype: torch.dtype, problems: Problems) -> TransformerFacts | None:
    """Looks at every file, and at all of them together; None where the transformer cannot be told."""
    found = _transformer(files, problems)
    facts = None if found is None else problems.attempt("base", _facts, *found, files, dtype)
    if files.vae is not None:
        problems.attempt("vae", check_vae, files.vae)
    _text_encoder(files.text_encoder, facts, problems)
    _image_encoder(files.image_encoder, facts, problems)
    _audio_encoder(files, facts, problems)
    return facts


def _transformer(files: WeightFiles, problems: Problems) -> tuple[Weights, list[Source]] | None:
    if files.base is None:
        return None
    parts = [problems.attempt("base", open_as, files.base, Component.TRANSFORMER)]
    if files.adapter is not None:
        parts.append(problems.attempt("adapter", open_as, files.adapter, Component.ADAPTER))
    together = None if None in parts else problems.attempt("adapter", transformer_weights, files.base, files.adapter)
    for path, strength in files.loras:
        problems.attempt("lora", check_lora, path, strength, together and together[0])
    return together


def check_lora(path: Path, strength: float, weights: Weights | None) -> None:
    """Looks whether a LoRA fits the transformer with these weights; None looks only at what it is.

    Raises:
        WeightsError: it is no plain LoRA, is damaged, or fits no layer.
    """
    if not math.isfinite(strength):
        raise WeightsError(f"The strength of {path.name} is {strength}; take a number, 1 is the trained one.")
    source, _ = open_as(path, Component.LORA)
    refuse_special(source)
    if weights is None:
        return
    shapes = _spelled(weights)
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, entry in source.entries.items():
        path, role = split_key(key) or ("", "")
        if path.replace(".", "_") in shapes:
            layers.setdefault(path, {})[role] = entry.shape
    for path, parts in layers.items():
        check_whole(source.name, path, parts)
    reasons = [_misfit(key, source, shapes) for key in source.entries if split_key(key) is not None]
    if all(reasons):
        first = reasons[0] if reasons else "it has no layers"
        made_for = next((name for part, name in OTHER_MODELS.items() if any(part in key for key in source.entries)), "")
        raise WeightsError(
            f"LoRA {source.name} fits no layer of this model: "
            f"{f'it was made for {made_for}' if made_for else first}. Take a LoRA for Wan2.1 14B."
        )


def _spelled(weights: Weights) -> Mapping[str, tuple[int, ...]]:
    """The shapes of all layers' weights, under every spelling of their names with underscores."""
    shapes = {}
    for key, stored in weights.items():
        path = key.removesuffix(".weight")
        native = native_transformer_key(path)
        for spelling in () if key.endswith(".bias") else (path, native, native.removesuffix(".modulation")):
            shapes.setdefault(spelling.replace(".", "_"), stored.shape)
    return shapes


def _misfit(key: str, source: Source, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Why a tensor fits no layer; empty where it does."""
    path, role = split_key(key)
    wanted, shape = shapes.get(path.replace(".", "_")), source.entries[key].shape
    if wanted is None:
        return f"there is no layer {path}"
    axis = {DOWN: 1, UP: 0}.get(role)
    if axis is None or len(shape) <= axis or len(wanted) <= axis or shape[axis] == wanted[axis]:
        return ""
    return f"{path} is {shape[axis]} wide in it and {wanted[axis]} in the model"


def _facts(weights: Weights, sources: list[Source], files: WeightFiles, dtype: torch.dtype) -> TransformerFacts:
    blocks: dict[str, int] = {}
    outer = 0
    for key, stored in weights.items():
        match, wide = BLOCK.match(key), math.prod(stored.shape) * dtype.itemsize
        size = min(stored.entry.num_bytes, wide) if stored.is_plain else stored.entry.num_bytes
        if match:
            blocks[match[1]] = blocks.get(match[1], 0) + size
        else:
            outer += size
    lora_bytes = sum(path.stat().st_size for path, _ in files.loras if path.is_file())
    with sizes_from(files.base.name):
        block_bytes = max(blocks.values()) + lora_bytes // len(blocks)
        config = transformer_config({name: stored.shape for name, stored in weights.items()}, sources)
        return TransformerFacts(
            Footprint(len(blocks), block_bytes, outer, weights["patch_embedding.weight"].shape[0]),
            config["audio_features"],
            config["text_dim"],
            config["image_dim"],
        )


def _text_encoder(path: Path | None, facts: TransformerFacts | None, problems: Problems) -> None:
    if path is None or problems.attempt("text_encoder", check_text_encoder, path) is None:
        return
    source, _ = open_as(path, Component.TEXT_ENCODER)
    problems.attempt("text_encoder", check_tokenizer, source)
    table = collect(source, rename_text).get("shared.weight")
    if facts and table is not None and table.shape[-1:] != (facts.text_dim,):
        message = _of_other_width(source.name, table.shape[-1:], facts.text_dim, "UMT5-XXL")
        problems.add("text_encoder", message)


def _image_encoder(path: Path | None, facts: TransformerFacts | None, problems: Problems) -> None:
    if path is None or problems.attempt("image_encoder", check_image_encoder, path) is None:
        return
    source, _ = open_as(path, Component.IMAGE_ENCODER)
    token = collect(source, rename_clip_key).get("embeddings.class_embedding")
    if facts and token is not None and token.shape[-1:] != (facts.image_dim,):
        message = _of_other_width(source.name, token.shape[-1:], facts.image_dim, "clip_vision_h")
        problems.add("image_encoder", message)


def _audio_encoder(files: WeightFiles, facts: TransformerFacts | None, problems: Problems) -> None:
    path = files.audio_encoder
    if path is None or problems.attempt("audio_encoder", check_audio_encoder, path, files.allow_other) is None:
        return
    source, _ = open_as(path, Component.AUDIO_ENCODER)
    weights = collect(source, rename_wav2vec2)
    norm = weights.get("encoder.layer_norm.bias")
    heard = (count(weights, r"encoder\.layers\.(\d+)\."), norm.shape[0] if norm is not None and norm.shape else 0)
    if facts and heard != facts.audio_features:
        problems.add(
            "audio_encoder",
            f"{source.name} has {heard[0]} layers of {heard[1]}, the audio weights want {facts.audio_features[0]} of "
            f"{facts.audio_features[1]}. Take chinese-wav2vec2-base.",
        )


def _of_other_width(name: str, width: tuple[int, ...], wanted: int, cure: str) -> str:
    return f"{name} gives tokens of width {width[0] if width else 0}, the model wants {wanted}. Take {cure}."
