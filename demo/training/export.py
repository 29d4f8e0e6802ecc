"""Export of the trained networks as the files that users of the large model have: `python -m demo.training.export`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file
from torch import Tensor

from pipeline.models.vae.video_vae import LATENT_MEAN, LATENT_STD
from pipeline.weights.key_maps import native_clip_state, native_text_key, native_transformer_key

from .. import prompts
from . import vae
from .clips import latent_statistics, random_image_encoder
from .run import RUN_FOLDER, Setup, load_average

STORED_DTYPE = torch.float16

State = dict[str, Tensor]
Statistics = tuple[Tensor, Tensor]
"""Mean and standard deviation of each channel of the VAE's latents."""

PUBLISHED: Statistics = (torch.tensor(LATENT_MEAN), torch.tensor(LATENT_STD))


def main(arguments: list[str] | None = None) -> None:
    """Writes all files from the states of the phases, finished or not."""
    parser = argparse.ArgumentParser(prog="python -m demo.training.export", description=__doc__)
    parser.add_argument("folder", type=Path, help="gets a folder for each kind of file, as ComfyUI sorts them")
    parser.add_argument("--run", type=Path, default=RUN_FOLDER, help="folder of the states")
    options = parser.parse_args(arguments)
    setup = Setup(options.run)
    states = {phase: load_average(phase, setup) for phase in ("vae", "speech_encoder", "guidance")}
    for name, state in file_states(states, latent_statistics(setup)).items():
        path = options.folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: _stored(tensor) for key, tensor in state.items()}, path)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def file_states(states: dict[str, State], statistics: Statistics) -> dict[str, State]:
    """States of all files, by folder and name, as ComfyUI sorts models.

    Args:
        states: of the networks of the phases `vae`, `speech_encoder` and `guidance`.
        statistics: mean and standard deviation of the latents that the transformer has learnt from.
    """
    transformer = {
        native_transformer_key(key.removeprefix("transformer.")): tensor
        for key, tensor in states["guidance"].items()
        if key.startswith("transformer.")
    }
    adapter = {key: tensor for key, tensor in transformer.items() if _is_adapter(key)}
    return {
        "diffusion_models/wan2.1_i2v_480p_demo": {
            key: tensor for key, tensor in transformer.items() if key not in adapter
        },
        "model_patches/multitalk_demo": adapter,
        "vae/wan_2.1_vae_demo": _vae_state(states["vae"], statistics),
        "text_encoders/umt5_demo": _text_state(states["guidance"]),
        "clip_vision/clip_vision_h_demo": native_clip_state(random_image_encoder().model.state_dict()),
        "audio_encoders/wav2vec2_demo": _speech_state(states["speech_encoder"]),
    }


@torch.no_grad()
def fold_statistics(model: AutoencoderKLWan, old: Statistics, new: Statistics) -> None:
    """Changes the VAE's latents from the old statistics to the new ones; its pictures stay as they are.

    With m, s the old mean and standard deviation and M, S the new ones, the encoder's last convolution gives
    `(z - m) / s * S + M`, and the decoder's first one takes that back.
    """
    (old_mean, old_std), (new_mean, new_std) = ([value.flatten() for value in statistics] for statistics in (old, new))
    gain, shift = new_std / old_std, new_mean - old_mean * new_std / old_std
    last, first, channels = model.quant_conv, model.post_quant_conv, len(gain)
    last.weight[:channels] *= gain[:, None, None, None, None]
    last.bias[:channels] = last.bias[:channels] * gain + shift
    first.bias -= first.weight.flatten(1) @ (shift / gain)
    first.weight /= gain[None, :, None, None, None]


def _vae_state(state: State, statistics: Statistics) -> State:
    """VAE with the published latent statistics folded in: its latents, normalised by those, are of unit size."""
    model = vae.build()
    model.load_state_dict(state)
    fold_statistics(model, statistics, PUBLISHED)
    return model.state_dict()


def _text_state(state: State) -> State:
    """Text encoder with its tokenizer inside, as ComfyUI packs it."""
    encoder = {
        native_text_key(key.removeprefix("text_encoder.")): tensor
        for key, tensor in state.items()
        if key.startswith("text_encoder.") and "embed_tokens" not in key
    }
    return encoder | {"spiece_model": torch.frombuffer(bytearray(prompts.tokenizer()), dtype=torch.uint8)}


def _speech_state(state: State) -> State:
    """Speech encoder without the heads that it was trained by, named as published."""
    encoder = {key.removeprefix("encoder."): tensor for key, tensor in state.items() if key.startswith("encoder.")}
    return {f"wav2vec2.{_published_speech_key(key)}": tensor for key, tensor in encoder.items()}


def _published_speech_key(key: str) -> str:
    key = key.replace("conv.parametrizations.weight.original0", "conv.weight_g")
    return key.replace("conv.parametrizations.weight.original1", "conv.weight_v")


def _is_adapter(key: str) -> bool:
    return key.startswith("audio_proj.") or ".audio_cross_attn." in key or ".norm_x." in key


def _stored(tensor: Tensor) -> Tensor:
    return tensor.to(STORED_DTYPE).contiguous() if tensor.is_floating_point() else tensor


if __name__ == "__main__":
    main()
