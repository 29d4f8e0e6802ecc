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
    """Each size with one speaker and with two."""
    for name in settings.sizes or DEFAULT_SIZES[settings.device.type]:
        for num_speakers in (1, 2):
            yield from _forward(name, num_speakers, settings)


def _forward(name: str, num_speakers: int, settings: Settings) -> Iterator[Row]:
    size = SIZES[name]
    transformer = random_transformer(size, settings.device, settings.dtype)
    told = random_inputs(transformer, size, num_speakers)[Pass.COND]
    latents = random_latents(size, settings.device)
    ways = {
        "ours": partial(transformer, latents, TIMESTEP, told.prepared(transformer)),
        "plain formulas": partial(plain.velocity, transformer, latents, TIMESTEP, told),
        "diffusers, no audio": without_audio(transformer, told, latents, TIMESTEP),
    }
    for peer, forward in peer_forwards(transformer, told, settings).items():
        ways[peer] = partial(forward, latents, TIMESTEP)
    figures = measure(ways, settings)
    exact = None if settings.dtype is torch.float32 else plain.velocity(transformer.float(), latents, TIMESTEP, told)
    case = f"{name}, {size.describe()}, {num_speakers} speaker(s)"
    for row in comparison_rows(case, figures, {"plain formulas": GOALS.get(name)}):
        yield row | _distances(figures, row["against"], exact)


def _distances(figures: Mapping[str, Figures], other: str, exact: Tensor | None) -> dict[str, Value]:
    """What the other way is compared by: not at all where it hears nothing, in half precision also to float32."""
    if other == "diffusers, no audio":
        return {"relative error": None}
    if exact is None:
        return {}
    to_exact = {way: relative_error(figures[way].result, exact) for way in (other, "ours")}
    return {"to float32": to_exact[other], "ours, to float32": to_exact["ours"]}
