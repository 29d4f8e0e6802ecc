"""Whole tiny run with random weights, from picture and voice to frames: seconds and memory of each preset."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pipeline.audio.dialogue import Speech
from pipeline.audio.embeds import encode_audio
from pipeline.audio.waveform import SAMPLE_RATE_HZ, Sound
from pipeline.conditioning.conditioning import Conditioning
from pipeline.config import Acceleration, GenerationConfig, Recipe
from pipeline.generate import generate
from pipeline.generation.run_spec import make_run_spec
from pipeline.host import TorchHost
from pipeline.weights import build

from .measure import Settings, measure
from .peers import peer_renders
from .report import Row, comparison_rows
from .tiny_weights import TinySet, write_tiny

SIDE = 64
SIZES = {"smoke": (5, 10), "tiny": (121, 20)}  # frames, steps: two windows


def run(settings: Settings) -> Iterator[Row]:
    """Rows of each preset, and of peers' whole runs, against `none`."""
    for name in settings.sizes or ("tiny",):
        num_frames, steps = SIZES[name]
        with tempfile.TemporaryDirectory() as folder:
            files = write_tiny(Path(folder))
            variants = {
                "ours": partial(_render, files, num_frames, steps, Acceleration.NONE, settings),
                "regular": partial(_render, files, num_frames, steps, Acceleration.REGULAR, settings),
                "high": partial(_render, files, num_frames, steps, Acceleration.HIGH, settings),
            }
            for peer, render in peer_renders(settings).items():
                variants[peer] = partial(render, files, num_frames, steps)
            case = f"{num_frames} frames, {SIDE}x{SIDE}, {steps} steps"
            yield from comparison_rows(case, measure(variants, settings))


def _render(files: TinySet, num_frames: int, steps: int, acceleration: Acceleration, settings: Settings) -> Tensor:
    random = torch.Generator().manual_seed(0)
    sound = Sound(torch.randn(1, num_frames * SAMPLE_RATE_HZ // 25, generator=random) * 0.1, SAMPLE_RATE_HZ)
    text = build.load_text_encoder(files.text_encoder)
    conditioning = Conditioning(
        source=torch.randint(0, 256, (1, SIDE, SIDE, 3), dtype=torch.uint8, generator=random),
        prompt_embeds=(text.encode("a person talks"),),
        negative_embeds=text.encode("blurred"),
        vae=build.load_vae(files.vae),
        image_encoder=build.load_image_encoder(files.image_encoder),
    )
    transformer = build.load_transformer(files.transformer, files.adapter, dtype=settings.dtype)
    config = GenerationConfig(acceleration=acceleration, steps=steps)
    embeds = encode_audio(build.load_audio_encoder(files.audio_encoder), [Speech(sound)], num_frames=num_frames)
    spec = make_run_spec(config, Recipe.MULTITALK, (SIDE, SIDE), embeds.num_frames)
    return torch.cat(list(generate(transformer, embeds, conditioning, spec, TorchHost(settings.device))), 1)
