"""Makes finished stages of a training out of the bundled weights: `python -m demo.restore`.

A training state is far larger than what it has learned, and is not kept. With this, `python -m demo.train` goes on from
the bundled weights once a stage has been given more steps than it had.
"""

from __future__ import annotations

from pathlib import Path

import sentencepiece
import torch
from torch import nn

from pipeline.weights import build
from pipeline.weights.catalog import open_as, transformer_weights
from pipeline.weights.key_maps import rename_text
from pipeline.weights.recognition import Component
from pipeline.weights.stored import collect

from . import prompts, train_audio, train_transformer, train_vae
from .export import MODELS_FOLDER, PUBLISHED, State, Statistics, fold
from .run import RUN_FOLDER, Run, total_steps
from .talking_model import TalkingModel

UNIT: Statistics = (torch.zeros(train_vae.LATENT_CHANNELS), torch.ones(train_vae.LATENT_CHANNELS))


def main() -> None:
    """Writes the stages; those that are on disk stay as they are."""
    models = networks(MODELS_FOLDER)
    steps = {
        "vae": total_steps(train_vae.PHASES),
        "decoder": total_steps(train_vae.DECODER_PHASES),
        "eyes": total_steps(train_vae.EYE_PHASES),
        "audio": total_steps(train_audio.PHASES),
        "transformer": total_steps(train_transformer.PHASES),
    }
    stages = {"vae": models["eyes"], **models, "decoder": models["eyes"]}  # last, as it freezes a part
    for stage, model in stages.items():
        if (RUN_FOLDER / f"{stage}.pt").exists():
            print(f"{stage}: is there already")
            continue
        if stage == "decoder":
            train_vae.freeze_encoder(model)
        run = Run(stage, model, steps[stage], rate=0.0)
        run.step = steps[stage]
        run.save()
        print(f"{stage}: as after {run.step} steps")
    torch.save(tuple(value[:, None, None, None] for value in UNIT), RUN_FOLDER / "latent_statistics.pt")


def networks(folder: Path) -> dict[str, nn.Module]:
    """The network of each stage with the weights below `folder`; the latents are of unit size."""
    vae = train_vae.build()
    vae.load_state_dict(build.load_vae(folder / "vae/wan_2.1_vae_demo.safetensors").model.state_dict())
    fold(vae, PUBLISHED, UNIT)
    listener = train_audio.Listener()
    heard = build.load_audio_encoder(folder / "audio_encoders/wav2vec2_demo.safetensors")
    state = heard.state_dict()
    listener.encoder.load_state_dict({name: state[name] for name in listener.encoder.state_dict()})
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=prompts.tokenizer())
    talking = TalkingModel(tokenizer.vocab_size())
    talking.load_state_dict(_talking_state(folder))
    return {"eyes": vae, "audio": listener, "transformer": talking}


def _talking_state(folder: Path) -> State:
    stored, _ = transformer_weights(
        folder / "diffusion_models/wan2.1_i2v_480p_demo.safetensors",
        folder / "model_patches/multitalk_demo.safetensors",
    )
    source, _ = open_as(folder / "text_encoders/umt5_demo.safetensors", Component.TEXT_ENCODER)
    texts = collect(source, rename_text)
    texts["encoder.embed_tokens.weight"] = texts["shared.weight"]
    weights = {f"transformer.{name}": part for name, part in stored.items()}
    weights |= {f"text_encoder.{name}": part for name, part in texts.items()}
    return {name: part.tensor(torch.float32) for name, part in weights.items()}


if __name__ == "__main__":
    main()
