"""Checks of the files of each part by their headers, before any weights are read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..errors import WeightsError
from .checkpoint import open_source
from .configs import AUDIO_NORM, count, sizes_from
from .key_maps import TRANSFORMER, rename_clip_key, rename_text, rename_transformer, rename_vae, rename_wav2vec2
from .recognition import Component, Kind, recognize
from .source import Source, readable_size
from .stored import StoredWeight, collect

Weights = dict[str, StoredWeight]

SUBFOLDERS = {  # of a diffusers folder
    Component.TRANSFORMER: "transformer",
    Component.VAE: "vae",
    Component.TEXT_ENCODER: "text_encoder",
    Component.IMAGE_ENCODER: "image_encoder",
}
RENAMES = {
    Component.TRANSFORMER: rename_transformer,
    Component.ADAPTER: rename_transformer,
    Component.VAE: rename_vae,
    Component.TEXT_ENCODER: rename_text,
    Component.IMAGE_ENCODER: rename_clip_key,
    Component.AUDIO_ENCODER: rename_wav2vec2,
}
AUDIO_INPUT = "audio_proj.proj1.weight"  # which only audio weights have
FULL_WIDTH = 5120  # of the 14B model
BLOCK = r"blocks\.(\d+)\."
ANY_BLOCK = re.compile(r"\bblocks\.\d+\.")  # whatever stands before it


def open_as(path: Path | str, component: Component) -> tuple[Source, Kind]:
    """The file at `path`, which has to be a `component`, and its kind.

    Raises:
        WeightsError: it is something else (which is named), or damaged.
    """
    source = open_source(path, SUBFOLDERS.get(component, ""))
    kind = recognize(source)
    if kind.component is component or (component is Component.TRANSFORMER and kind.component is Component.MERGED):
        return source, kind
    if component is Component.TRANSFORMER and kind.component is Component.ADAPTER:
        raise WeightsError(
            f"{source.name} contains only MultiTalk's audio weights ({len(source.entries)} tensors): put it into the "
            f"adapter input and choose a Wan2.1 I2V model here."
        )
    if component is Component.ADAPTER and kind.component is Component.TRANSFORMER:
        raise WeightsError(
            f"{source.name} is a whole Wan2.1 model without audio weights: put it into base and choose "
            f"{Component.ADAPTER.value} here."
        )
    if component is Component.ADAPTER and kind.component is Component.MERGED:
        raise WeightsError(f"{source.name} is a whole model with audio weights: choose it as the model, no adapter.")
    advice = kind.advice or f"MultiTalk needs {component.value}"
    raise WeightsError(f"{source.name} is {kind.name}. {advice}.")


def open_weights(path: Path | str, component: Component) -> tuple[Source, Weights]:
    """The file at `path`, which has to be a `component`, and its weights by our names.

    Raises:
        WeightsError: it is something else, damaged, or packed in a way that cannot be read.
    """
    source, _ = open_as(path, component)
    return source, collect(source, RENAMES[component])


def open_audio_encoder(path: Path | str, allow_other: bool = False) -> tuple[Source, Weights]:
    """The wav2vec2 at `path` and its weights; `allow_other` takes a fine-tuned one.

    Raises:
        WeightsError: it is no wav2vec2 base, or one that was fine-tuned for recognition: lips would not follow it.
    """
    source, weights = open_weights(path, Component.AUDIO_ENCODER)
    if "lm_head.weight" in source.entries and not allow_other:
        raise WeightsError(
            f"{source.name} is a wav2vec2 that was fine-tuned for recognition, such as English wav2vec2-base-960h: "
            f"its shapes fit but lip sync will be wrong. Use chinese-wav2vec2-base, or allow another encoder."
        )
    return source, weights


def transformer_weights(base: Path | str, adapter: Path | str | None) -> tuple[Weights, list[Source]]:
    """The weights of base and adapter together, by our names, and the files that they are in.

    Raises:
        WeightsError: one of them is not what it should be, or they do not fit each other.
    """
    audio = None if adapter is None else open_weights(adapter, Component.ADAPTER)
    return join_weights(open_weights(base, Component.TRANSFORMER), audio)


def join_weights(base: tuple[Source, Weights], adapter: tuple[Source, Weights] | None) -> tuple[Weights, list[Source]]:
    """The weights of a base and its adapter together, and their files.

    Raises:
        WeightsError: audio weights are missing or there twice, the sizes differ, or layers are missing or unknown.
    """
    source, weights = base
    sources, is_merged = [source], AUDIO_INPUT in weights
    if is_merged and adapter is not None:
        raise WeightsError(f"{source.name} already contains the audio weights; leave the adapter empty.")
    if not is_merged and adapter is None:
        raise WeightsError(f"{source.name} has no audio weights: choose {Component.ADAPTER.value} as the adapter too.")
    if adapter is not None:
        _check_fit(base, adapter)
        sources, weights = [source, adapter[0]], weights | adapter[1]
    for part in sources:
        _check_no_others(part)
    _check_complete(sources, weights)
    return weights, sources


def check_transformer(base: Path, adapter: Path | None = None, loras: Iterable[Path] = ()) -> str:
    """Checks base, adapter and LoRAs by their headers and describes them.

    Raises:
        WeightsError: a file is damaged, of another kind, or does not fit the others.
    """
    weights, sources = transformer_weights(base, adapter)
    with sizes_from(sources[0].name):
        width, layers = weights["patch_embedding.weight"].shape[0], count(weights, BLOCK)
    size = "14B" if width == FULL_WIDTH else f"{layers} blocks of width {width}"
    parts = [
        describe(source, {name: weight for name, weight in weights.items() if weight.source is source})
        for source in sources
    ]
    parts += [f"LoRA {open_as(lora, Component.LORA)[0].name}" for lora in loras]
    return f"Wan2.1 I2V {size}: " + "; ".join(parts)


def check_vae(path: Path) -> str:
    """Checks Wan's VAE by its header and describes it."""
    return describe(*open_weights(path, Component.VAE))


def check_text_encoder(path: Path) -> str:
    """Checks umT5 by its header and describes it."""
    return describe(*open_weights(path, Component.TEXT_ENCODER))


def check_image_encoder(path: Path) -> str:
    """Checks CLIP's vision tower by its header and describes it."""
    return describe(*open_weights(path, Component.IMAGE_ENCODER))


def check_audio_encoder(path: Path, allow_other: bool = False) -> str:
    """Checks wav2vec2 by its header and describes it; `allow_other` takes a fine-tuned one."""
    return describe(*open_audio_encoder(path, allow_other))


def describe(source: Source, weights: Weights) -> str:
    """One line: "wan2.1_i2v.safetensors (native names, fp8 e4m3 scaled per tensor, 17.1 GB)"."""
    sizes = Counter()
    for weight in weights.values():
        if len(weight.entry.shape) >= 2:
            sizes[weight.packing] += weight.entry.num_bytes
    packing = " and ".join(name for name, _ in sizes.most_common(2))
    return f"{source.name} ({_naming(source)} names, {packing}, {readable_size(source.num_bytes)})"


def _naming(source: Source) -> str:
    keys = list(source.entries)
    if any(".attn1." in key or ".SelfAttention." in key or "self_attn.q_proj" in key for key in keys):
        return "diffusers"
    return "llama.cpp" if any(key.startswith("enc.blk.") for key in keys) else "native"


def _check_fit(base: tuple[Source, Weights], adapter: tuple[Source, Weights]) -> None:
    (source, weights), (audio_source, audio) = base, adapter
    with sizes_from(source.name):
        width, layers = weights["patch_embedding.weight"].shape[0], count(weights, BLOCK)
    with sizes_from(audio_source.name):
        audio_width = audio["blocks.0.audio_cross_attn.q_linear.bias"].shape[0]
    if (audio_width, count(audio, BLOCK)) != (width, layers):
        raise WeightsError(
            f"{audio_source.name} has {count(audio, BLOCK)} blocks of width {audio_width}, {source.name} has {layers} "
            f"of width {width}: choose files of the same model size."
        )


def _check_complete(sources: list[Source], weights: Weights) -> None:
    layers = count(weights, BLOCK)
    present = {name.rsplit(".", 1)[0] for name in weights} | set(weights)
    paths = (path.format(i=index) for path in TRANSFORMER.values() for index in range(layers if "{i}" in path else 1))
    missing = [path for path in paths if path not in present and path != AUDIO_NORM]
    if missing:
        names = " and ".join(source.name for source in sources)
        raise WeightsError(
            f"{names} lack {len(missing)} of the model's layers (the first: {missing[0]}): download a complete file."
        )


def _check_no_others(source: Source) -> None:
    """Layers inside the blocks that are none of ours make another network: without them it would run, and badly."""
    others = [key for key in source.entries if ANY_BLOCK.search(key) and rename_transformer(key) is None]
    if others:
        raise WeightsError(
            f"{source.name} is another model than Wan2.1 I2V: its blocks have {len(others)} tensors more (the first: "
            f"{others[0]}). MultiTalk needs {Component.TRANSFORMER.value}."
        )
