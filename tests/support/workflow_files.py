"""Tiny files for the shipped workflows: models under the names of the real ones, pictures and voices."""

from __future__ import annotations

import math
import shutil
import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

PLACES = {
    "transformer": ("diffusion_models", ["wan2.1_i2v_480p_14B_fp8_scaled", "wan2.1_i2v_480p_demo"]),
    "adapter": ("model_patches", ["WanVideo_2_1_Multitalk_14B_fp8_e4m3fn", "multitalk_demo"]),
    "vae": ("vae", ["wan_2.1_vae", "wan_2.1_vae_demo"]),
    "text_encoder": ("text_encoders", ["umt5_xxl_fp8_e4m3fn_scaled", "umt5_demo"]),
    "image_encoder": ("clip_vision", ["clip_vision_h", "clip_vision_h_demo"]),
    "audio_encoder": ("audio_encoders", ["wav2vec2-chinese-base_fp16", "wav2vec2_demo"]),
}
LORA = "lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16"
PICTURE = "portrait.png"
VOICES = {"speech.wav": 220, "answer.wav": 330}  # pitch in Hz
RATE_HZ = 16000
VOICE_S = 1.0


def write_models(models: Path) -> None:
    """Tiny weights in ComfyUI's model folders."""
    from multitalk_pack.benchmarks.tiny_weights import write_tiny
    from safetensors.torch import load_file, save_file

    files = write_tiny(models / "made")
    for part, (key, names) in PLACES.items():
        (models / key).mkdir(exist_ok=True)
        for name in names:
            shutil.copy(getattr(files, part), models / key / f"{name}.safetensors")
    flashtalk = models / "diffusers" / "SoulX-FlashTalk-14B"
    flashtalk.mkdir(parents=True, exist_ok=True)
    (flashtalk / "config.json").write_text("{}")
    merged = load_file(files.transformer) | load_file(files.adapter)
    save_file(merged, flashtalk / "diffusion_pytorch_model.safetensors")
    weight = load_file(files.transformer)["blocks.0.self_attn.q.weight"]
    lora = {
        "diffusion_model.blocks.0.self_attn.q.lora_down.weight": torch.randn(2, weight.shape[1]) * 0.01,
        "diffusion_model.blocks.0.self_attn.q.lora_up.weight": torch.randn(weight.shape[0], 2) * 0.01,
    }
    (models / "loras").mkdir(exist_ok=True)
    save_file(lora, models / "loras" / f"{LORA}.safetensors")


def write_inputs(folder: Path, duration_s: float = VOICE_S) -> None:
    """Noise for a portrait, and a tone in pulses for each voice."""
    picture = (np.random.default_rng(0).random((90, 120, 3)) * 255).astype("uint8")
    Image.fromarray(picture).save(folder / PICTURE)
    time = np.arange(round(duration_s * RATE_HZ)) / RATE_HZ
    for name, pitch in VOICES.items():
        tone = 0.5 * np.sin(2 * math.pi * pitch * time) * (time % 0.4 < 0.2)
        with wave.open(str(folder / name), "wb") as file:
            file.setparams((1, 2, RATE_HZ, len(time), "NONE", ""))
            file.writeframes((tone * 32767).astype("<i2").tobytes())


def with_own_files(prompt: dict[str, Any]) -> dict[str, Any]:
    """The workflow with other pictures and voices than the bundled examples."""
    voices = iter(VOICES)
    for entry in prompt.values():
        if entry["class_type"] == "MultiTalkLoadImage":
            entry["inputs"]["image"] = PICTURE
        if entry["class_type"] == "MultiTalkLoadAudio":
            entry["inputs"]["audio"] = next(voices)
    return prompt


def small(prompt: dict[str, Any], num_frames: int = 9) -> dict[str, Any]:
    """The workflow at a size that runs in seconds: a small picture, two steps, few frames (0 for all of the speech)."""
    for entry in prompt.values():
        if entry["class_type"] == "MultiTalkCondition":
            entry["inputs"] |= {"resolution": "custom", "width": 64, "height": 64}
        if entry["class_type"] == "MultiTalkSampler":
            entry["inputs"] |= {"steps": 2, "acceleration": "none"}
        if entry["class_type"] == "MultiTalkEncodeAudio":
            entry["inputs"]["num_frames"] = num_frames
    return prompt


def inputs_of(prompt: dict[str, Any], kind: str) -> dict[str, Any]:
    """The inputs of the first node of this kind."""
    return next(entry["inputs"] for entry in prompt.values() if entry["class_type"] == kind)
