"""A tiny FlashTalk in its published layout: one folder, its transformer merged, in shards, its encoders beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from multitalk_pack.benchmarks.tiny_weights import WeightSizes, tiny_tokenizer, write_tiny
from multitalk_pack.pipeline.model_files import ModelFiles
from safetensors.torch import load_file, save_file

SIZES = WeightSizes(width=128, layers=1, ffn=128, vae_width=2)
INDEX = "diffusion_pytorch_model.safetensors.index.json"
SHARDS = [f"diffusion_pytorch_model-{number:05d}-of-00002.safetensors" for number in (1, 2)]
PICKLED = {
    "text_encoder": "models_t5_umt5-xxl-enc-bf16.pth",
    "image_encoder": "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
    "vae": "Wan2.1_VAE.pth",
}


def write_flashtalk(folder: Path) -> ModelFiles:
    """The set in `folder`, as `SoulX-FlashTalk-14B` and `chinese-wav2vec2-base`, named by its folders."""
    tiny = write_tiny(folder / "tiny", sizes=SIZES)
    model, speech = folder / "SoulX-FlashTalk-14B", folder / "chinese-wav2vec2-base"
    model.mkdir()
    speech.mkdir()
    merged = load_file(tiny.transformer) | load_file(tiny.adapter)
    keys, weight_map = sorted(merged), {}
    for name, part in zip(SHARDS, (keys[::2], keys[1::2]), strict=True):
        save_file({key: merged[key] for key in part}, model / name)
        weight_map |= dict.fromkeys(part, name)
    (model / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (model / "config.json").write_text(json.dumps({"_class_name": "WanModel", "num_heads": 1}))
    for part, name in PICKLED.items():
        state = load_file(getattr(tiny, part))
        state.pop("spiece_model", None)
        torch.save(state, model / name)
    tokenizer = model / "google" / "umt5-xxl" / "spiece.model"
    tokenizer.parent.mkdir(parents=True)
    tokenizer.write_bytes(tiny_tokenizer())
    shutil.copy(tiny.audio_encoder, speech / "model.safetensors")
    return ModelFiles.of(base=model, audio_encoder=speech, **{part: model / name for part, name in PICKLED.items()})


def write_single_file(folder: Path) -> Path:
    """The same transformer as one file, in a folder of the model's name."""
    tiny = write_tiny(folder / "tiny", sizes=SIZES)
    path = folder / "flash_talk" / "diffusion_pytorch_model.safetensors"
    path.parent.mkdir()
    save_file(load_file(tiny.transformer) | load_file(tiny.adapter), path)
    return path
