"""Finished phases made of the bundled weights: `python -m demo.training.restore [phase ...]`.

So one phase can be trained without those before it: restore the others, and run `python -m demo.training`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from pipeline.weights import build
from pipeline.weights.catalog import open_as, transformer_weights
from pipeline.weights.key_maps import rename_text
from pipeline.weights.recognition import Component
from pipeline.weights.stored import collect

from . import guidance, speech_encoder, transformer, vae
from .clips import save_latent_statistics
from .export import PUBLISHED, State, Statistics, fold_statistics
from .model import TalkingModel
from .run import RUN_FOLDER, Run, Setup

WEIGHTS_FOLDER = Path(__file__).resolve().parents[1] / "weights"
UNIT: Statistics = (torch.zeros(vae.LATENT_CHANNELS), torch.ones(vae.LATENT_CHANNELS))
NUM_STEPS = {
    "vae": vae.NUM_STEPS,
    "speech_encoder": speech_encoder.NUM_STEPS,
    "transformer": transformer.NUM_STEPS,
    "guidance": guidance.NUM_STEPS,
}


def main(arguments: list[str] | None = None) -> None:
    """Writes the states of the phases that the arguments name; those on disk stay as they are."""
    parser = argparse.ArgumentParser(prog="python -m demo.training.restore", description=__doc__)
    parser.add_argument("phases", nargs="*", default="all", choices=[*NUM_STEPS, "all"], metavar="phase")
    parser.add_argument("--run", type=Path, default=RUN_FOLDER, help="folder of the states")
    options = parser.parse_args(arguments)
    setup, models = Setup(options.run), networks(WEIGHTS_FOLDER)
    for phase in NUM_STEPS if "all" in options.phases else options.phases:
        run = Run(phase, models[phase], NUM_STEPS[phase], 0.0, setup)
        if not run.path.exists():
            run.step = NUM_STEPS[phase]
            run.save()
            print(f"{run.path}: as after {run.step} steps")
    save_latent_statistics(*UNIT, setup)


def networks(folder: Path) -> dict[str, nn.Module]:
    """Network of each phase with the weights below `folder`; the VAE's latents are of unit size."""
    video_vae = vae.build()
    video_vae.load_state_dict(build.load_vae(folder / "vae/wan_2.1_vae_demo.safetensors").model.state_dict())
    fold_statistics(video_vae, PUBLISHED, UNIT)
    predictor = speech_encoder.MouthPredictor()
    state = build.load_audio_encoder(folder / "audio_encoders/wav2vec2_demo.safetensors").state_dict()
    predictor.encoder.load_state_dict({name: state[name] for name in predictor.encoder.state_dict()})
    talking = TalkingModel()
    talking.load_state_dict(_talking_state(folder))
    return {"vae": video_vae, "speech_encoder": predictor, "transformer": talking, "guidance": talking}


def _talking_state(folder: Path) -> State:
    transformer_parts, _ = transformer_weights(
        folder / "diffusion_models/wan2.1_i2v_480p_demo.safetensors",
        folder / "model_patches/multitalk_demo.safetensors",
    )
    source, _ = open_as(folder / "text_encoders/umt5_demo.safetensors", Component.TEXT_ENCODER)
    text_parts = collect(source, rename_text)
    text_parts["encoder.embed_tokens.weight"] = text_parts["shared.weight"]
    parts = {f"transformer.{name}": part for name, part in transformer_parts.items()}
    parts |= {f"text_encoder.{name}": part for name, part in text_parts.items()}
    return {name: part.tensor(torch.float32) for name, part in parts.items()}


if __name__ == "__main__":
    main()
