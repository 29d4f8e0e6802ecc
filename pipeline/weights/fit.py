"""Checks that the files of a run fit each other, from their headers alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from ..errors import Problems
from ..memory.placement import Footprint
from .catalog import BLOCK, Weights, check_vae, join_weights, open_audio_encoder, open_weights
from .configs import count, sizes_from, transformer_config
from .lora import check_lora
from .recognition import Component
from .source import Source
from .stored import StoredWeight
from .tokenizer import check_tokenizer

FEW_STEP_NAMES = re.compile(r"lightx2v|fusionx|distill|lightning|causvid|accvid|\b[48]_?steps?\b", re.IGNORECASE)


class WeightFiles(Protocol):
    """The files of a run, as `ModelFiles` names them; None where something else, such as a core node, works instead."""

    @property
    def base(self) -> Path | None:
        """Wan2.1-I2V, or a file that holds the audio weights too."""

    @property
    def adapter(self) -> Path | None:
        """The audio weights."""

    @property
    def loras(self) -> tuple[tuple[Path, float], ...]:
        """Files and strengths."""
        ...

    @property
    def vae(self) -> Path | None:
        """Wan's video VAE."""

    @property
    def text_encoder(self) -> Path | None:
        """umT5."""

    @property
    def image_encoder(self) -> Path | None:
        """CLIP's vision tower."""

    @property
    def audio_encoder(self) -> Path | None:
        """wav2vec2."""

    @property
    def allow_other_audio_encoder(self) -> bool:
        """True takes one that was fine-tuned for something else."""
        ...


@dataclass(frozen=True)
class TransformerFacts:
    """The transformer's sizes, from the headers of its files.

    Attributes:
        num_heads: of the attention.
        audio_features: layers and channels of the speech features that it takes.
        text_dim: channels of a prompt token.
        image_dim: channels of an image token.
        stores_float8: some of its weights are float8.
    """

    footprint: Footprint
    num_heads: int
    audio_features: tuple[int, int]
    text_dim: int
    image_dim: int
    stores_float8: bool = False


def few_step_lora(loras: Iterable[tuple[Path, float]]) -> str | None:
    """The name of a LoRA that was made for few steps, as far as names tell."""
    return next((path.name for path, _ in loras if FEW_STEP_NAMES.search(path.stem)), None)


def check_weights(files: WeightFiles, dtype: torch.dtype, problems: Problems) -> TransformerFacts | None:
    """Checks every file, and all of them together.

    Args:
        files: of the run.
        dtype: of the transformer's computation.
        problems: take what is wrong, under the names of the files' options.

    Returns:
        None where the transformer's files cannot be used.
    """
    facts = None
    if files.base is not None:
        transformer = _check_transformer(files.base, files.adapter, problems)
        weights = None if transformer is None else transformer[0]
        for path, strength in files.loras:
            problems.attempt("lora", check_lora, path, strength, weights)
        if transformer is not None:
            facts = problems.attempt("base", _facts, *transformer, files.loras, dtype)
    if files.vae is not None:
        problems.attempt("vae", check_vae, files.vae)
    if files.text_encoder is not None:
        _check_text_encoder(files.text_encoder, facts, problems)
    if files.image_encoder is not None:
        _check_image_encoder(files.image_encoder, facts, problems)
    if files.audio_encoder is not None:
        _check_audio_encoder(files.audio_encoder, files.allow_other_audio_encoder, facts, problems)
    return facts


def _check_transformer(base: Path, adapter: Path | None, problems: Problems) -> tuple[Weights, list[Source]] | None:
    """The weights of base and adapter together; each is opened alone first, so that both show faults."""
    model = problems.attempt("base", open_weights, base, Component.TRANSFORMER)
    audio = None if adapter is None else problems.attempt("adapter", open_weights, adapter, Component.ADAPTER)
    if model is None or (adapter is not None and audio is None):
        return None
    return problems.attempt("adapter", join_weights, model, audio)


def _facts(
    weights: Weights, sources: list[Source], loras: Iterable[tuple[Path, float]], dtype: torch.dtype
) -> TransformerFacts:
    blocks: dict[str, int] = {}
    outer = 0
    for key, weight in weights.items():
        match, wide = re.match(BLOCK, key), math.prod(weight.shape) * dtype.itemsize
        size = min(weight.entry.num_bytes, wide) if weight.is_plain else weight.entry.num_bytes
        if match:
            blocks[match[1]] = blocks.get(match[1], 0) + size
        else:
            outer += size
    lora_bytes = sum(path.stat().st_size for path, _ in loras if path.is_file())
    with sizes_from(sources[0].name):
        block_bytes = max(blocks.values()) + lora_bytes // len(blocks)
        config = transformer_config({name: weight.shape for name, weight in weights.items()}, sources)
        return TransformerFacts(
            Footprint(len(blocks), block_bytes, outer, weights["patch_embedding.weight"].shape[0]),
            config["num_attention_heads"],
            config["audio_features"],
            config["text_dim"],
            config["image_dim"],
            any(weight.entry.dtype.startswith("F8") for weight in weights.values()),
        )


def _check_text_encoder(path: Path, facts: TransformerFacts | None, problems: Problems) -> None:
    encoder = problems.attempt("text_encoder", open_weights, path, Component.TEXT_ENCODER)
    if encoder is None:
        return
    source, weights = encoder
    problems.attempt("text_encoder", check_tokenizer, source)
    width = _last_side(weights.get("shared.weight"))
    if facts and width not in (None, facts.text_dim):
        problems.add("text_encoder", _other_width(source.name, width, facts.text_dim, "UMT5-XXL"))


def _check_image_encoder(path: Path, facts: TransformerFacts | None, problems: Problems) -> None:
    encoder = problems.attempt("image_encoder", open_weights, path, Component.IMAGE_ENCODER)
    if encoder is None:
        return
    source, weights = encoder
    width = _last_side(weights.get("embeddings.class_embedding"))
    if facts and width not in (None, facts.image_dim):
        problems.add("image_encoder", _other_width(source.name, width, facts.image_dim, "clip_vision_h"))


def _check_audio_encoder(path: Path, allow_other: bool, facts: TransformerFacts | None, problems: Problems) -> None:
    encoder = problems.attempt("audio_encoder", open_audio_encoder, path, allow_other)
    if encoder is None or facts is None:
        return
    source, weights = encoder
    layers = count(weights, r"encoder\.layers\.(\d+)\.")
    width = _last_side(weights.get("encoder.layer_norm.bias")) or 0
    if (layers, width) != facts.audio_features:
        problems.add(
            "audio_encoder",
            f"{source.name} has {layers} layers of {width}, the audio weights want {facts.audio_features[0]} of "
            f"{facts.audio_features[1]}. Take chinese-wav2vec2-base.",
        )


def _last_side(weight: StoredWeight | None) -> int | None:
    if weight is None:
        return None
    return weight.shape[-1] if weight.shape else 0


def _other_width(name: str, width: int | None, model_width: int, cure: str) -> str:
    return f"{name} gives tokens of width {width}, the model wants {model_width}. Take {cure}."
