"""One forward of the transformer, its constants computed before, against a plain evaluation of the formulas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from pipeline.sampling.guidance import Pass

from . import plain
from .measure import Figures, Settings, measure, relative_error
from .peers import peer_forwards, without_audio
from .report import Row, Value, comparison_rows
from .sizes import SIZES, random_inputs, random_latents, random_transformer

TIMESTEP = 700.0
DEFAULT_SIZES = {"cpu": ("tiny", "small", "mid", "midl"), "cuda": ("480p", "720p")}
GOALS = {"tiny": 10.0, "small": 2.0, "mid": 1.1, "midl": 1.25, "480p": 1.8, "720p": 1.5}


def run(settings: Settings) -> Iterator[Row]:
    """Rows of each size with one speaker and with two."""
    for name in settings.sizes or DEFAULT_SIZES[settings.device.type]:
        for num_speakers in (1, 2):
            yield from _forward(name, num_speakers, settings)


def _forward(name: str, num_speakers: int, settings: Settings) -> Iterator[Row]:
    size = SIZES[name]
    transformer = random_transformer(size, settings.device, settings.dtype)
    inputs = random_inputs(transformer, size, num_speakers)[Pass.COND]
    latents = random_latents(size, settings.device)
    variants = {
        "ours": partial(transformer, latents, TIMESTEP, inputs.pass_inputs(transformer)),
        "plain formulas": partial(plain.velocity, transformer, latents, TIMESTEP, inputs),
        "diffusers, no audio": without_audio(transformer, inputs, latents, TIMESTEP),
    }
    for peer, forward in peer_forwards(transformer, inputs, settings).items():
        variants[peer] = partial(forward, latents, TIMESTEP)
    figures = measure(variants, settings)
    exact = None if settings.dtype is torch.float32 else plain.velocity(transformer.float(), latents, TIMESTEP, inputs)
    case = f"{name}, {size.label()}, {num_speakers} speaker(s)"
    for row in comparison_rows(case, figures, {"plain formulas": GOALS.get(name)}):
        yield row | _distances(figures, row["against"], exact)


def _distances(figures: Mapping[str, Figures], baseline: str, exact: Tensor | None) -> dict[str, Value]:
    """Errors of a row: none against a network without audio, in half precision also those to float32."""
    if baseline == "diffusers, no audio":
        return {"relative error": None}
    if exact is None:
        return {}
    to_exact = {variant: relative_error(figures[variant].result, exact) for variant in (baseline, "ours")}
    return {"to float32": to_exact[baseline], "ours, to float32": to_exact["ours"]}
