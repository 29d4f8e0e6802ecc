"""Writes the trained parts as the files that users of the large model have: `python -m demo.export`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file
from torch import Tensor

from pipeline.models.vae.video_vae import LATENT_MEAN, LATENT_STD
from pipeline.weights.key_maps import native_clip_state, native_text_key, native_transformer_key

from . import prompts, train_vae, windows
from .dataset import random_image_encoder
from .run import RUN_FOLDER

MODELS_FOLDER = Path(__file__).parent / "weights"
STORED_DTYPE = torch.float16

STAGES = ("eyes", "audio", "transformer")

State = dict[str, Tensor]
Statistics = tuple[Tensor, Tensor]
"""Mean and standard deviation of each channel of the VAE's latents."""

PUBLISHED: Statistics = (torch.tensor(LATENT_MEAN), torch.tensor(LATENT_STD))


def main() -> None:
    """Exports whatever the training has reached by now."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=MODELS_FOLDER)
    options = parser.parse_args()
    stages = {stage: _average(stage) for stage in STAGES}
    total = 0
    for name, state in parts(stages, windows.latent_statistics()).items():
        path = options.folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: _stored(tensor) for key, tensor in state.items()}, path)
        total += path.stat().st_size
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    print(f"all: {total / 1e6:.1f} MB")


def parts(stages: Mapping[str, State], statistics: Statistics) -> dict[str, State]:
    """The states of all files, by folder and name, as ComfyUI sorts models.

    Args:
        stages: what each of `STAGES` has learned.
        statistics: mean and standard deviation of the trained latents.
    """
    learned = stages["transformer"]
    transformer = {
        native_transformer_key(key.removeprefix("transformer.")): tensor
        for key, tensor in learned.items()
        if key.startswith("transformer.")
    }
    adapter = {key: tensor for key, tensor in transformer.items() if _is_adapter(key)}
    return {
        "diffusion_models/wan2.1_i2v_480p_demo": {
            key: tensor for key, tensor in transformer.items() if key not in adapter
        },
        "model_patches/multitalk_demo": adapter,
        "vae/wan_2.1_vae_demo": vae_state(stages["eyes"], statistics),
        "text_encoders/umt5_demo": text_state(learned),
        "clip_vision/clip_vision_h_demo": native_clip_state(random_image_encoder().model.state_dict()),
        "audio_encoders/wav2vec2_demo": speech_state(stages["audio"]),
    }


def vae_state(learned: State, statistics: Statistics) -> State:
    """The VAE with the published latent statistics folded in: its latents, normalised by those, are of unit size."""
    vae = train_vae.build()
    vae.load_state_dict(learned)
    fold(vae, statistics, PUBLISHED)
    return vae.state_dict()


@torch.no_grad()
def fold(vae: AutoencoderKLWan, old: Statistics, new: Statistics) -> None:
    """Changes the VAE's latents from the old statistics to the new ones.

    With m, s the old mean and standard deviation and M, S the new ones, the encoder's last convolution gives
    `(z - m) / s * S + M`, and the decoder's first one takes that back.
    """
    (old_mean, old_std), (new_mean, new_std) = ([value.flatten() for value in each] for each in (old, new))
    gain, shift = new_std / old_std, new_mean - old_mean * new_std / old_std
    outgoing, incoming, count = vae.quant_conv, vae.post_quant_conv, len(gain)
    outgoing.weight[:count] *= gain[:, None, None, None, None]
    outgoing.bias[:count] = outgoing.bias[:count] * gain + shift
    incoming.bias -= incoming.weight.flatten(1) @ (shift / gain)
    incoming.weight /= gain[None, :, None, None, None]


def text_state(learned: State) -> State:
    """The text encoder with its tokenizer inside, as ComfyUI packs it."""
    encoder = {
        native_text_key(key.removeprefix("text_encoder.")): tensor
        for key, tensor in learned.items()
        if key.startswith("text_encoder.") and "embed_tokens" not in key
    }
    return encoder | {"spiece_model": torch.frombuffer(bytearray(prompts.tokenizer()), dtype=torch.uint8)}


def speech_state(learned: State) -> State:
    """The speech encoder without the heads that it was trained by, named as published."""
    encoder = {key.removeprefix("encoder."): tensor for key, tensor in learned.items() if key.startswith("encoder.")}
    return {f"wav2vec2.{_published(key)}": tensor for key, tensor in encoder.items()}


def _published(key: str) -> str:
    key = key.replace("conv.parametrizations.weight.original0", "conv.weight_g")
    return key.replace("conv.parametrizations.weight.original1", "conv.weight_v")


def _is_adapter(key: str) -> bool:
    return key.startswith("audio_proj.") or ".audio_cross_attn." in key or ".norm_x." in key


def _average(stage: str) -> State:
    return torch.load(RUN_FOLDER / f"{stage}.pt", map_location="cpu")["average"]


def _stored(tensor: Tensor) -> Tensor:
    return tensor.to(STORED_DTYPE).contiguous() if tensor.is_floating_point() else tensor


if __name__ == "__main__":
    main()
