"""A guided loop of four steps with three forwards each, everything that is kept over the steps computed inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

from torch import Tensor

from pipeline.config import GuidanceConfig
from pipeline.models.transformer.model import MultiTalkTransformer
from pipeline.sampling.denoise import NoAnchor, Predict, denoise
from pipeline.sampling.guidance import Guidance, Pass
from pipeline.sampling.samplers import EulerSampler
from pipeline.sampling.schedule import timesteps

from . import plain
from .measure import Settings, measure
from .report import Row, comparison_rows
from .sizes import SIZES, ForwardInputs, random_inputs, random_latents, random_transformer

STEPS, SHIFT = 4, 7.0
DEFAULT_SIZES = {"cpu": ("tiny", "small"), "cuda": ("480p",)}
GOALS = {"tiny": 3.0, "small": 1.5}
SCALES = {3: GuidanceConfig(5.0, 4.0), 2: GuidanceConfig(1.0, 2.0), 1: GuidanceConfig(1.0, 1.0)}  # by forwards a step


def run(settings: Settings) -> Iterator[Row]:
    """Rows of each size: three forwards a step against the plain formulas, then two and one against ours."""
    for name in settings.sizes or DEFAULT_SIZES[settings.device.type]:
        size = SIZES[name]
        transformer = random_transformer(size, settings.device, settings.dtype)
        inputs = random_inputs(transformer, size)
        inputs[Pass.DROP_AUDIO] = replace(inputs[Pass.COND], audio=inputs[Pass.UNCOND].audio)
        noise = random_latents(size, settings.device)
        variants = {
            "ours": partial(_ours, transformer, inputs, noise, 3),
            "plain formulas": partial(_plain, transformer, inputs, noise),
        }
        case = f"{name}, {STEPS} steps x 3 forwards"
        yield from comparison_rows(case, measure(variants, settings), {"plain formulas": GOALS.get(name)})
        for count in (2, 1):
            fewer = partial(_ours, transformer, inputs, noise, count)
            figures = measure({"ours": fewer, "ours, 3 forwards": variants["ours"]}, settings)
            for row in comparison_rows(f"{name}, {STEPS} steps x {count} forward(s)", figures):
                yield row | {"relative error": None}  # other scales, another video


def _ours(
    transformer: MultiTalkTransformer, inputs: Mapping[Pass, ForwardInputs], noise: Tensor, forwards: int
) -> Tensor:
    guidance = Guidance(SCALES[forwards])
    window = inputs[Pass.COND].window_inputs(transformer)
    pass_inputs = {pass_: inputs[pass_].pass_inputs(transformer, window) for pass_ in guidance.passes}

    def predict(latents: Tensor, timestep: Tensor, step: int, pass_: Pass) -> Tensor:
        return transformer(latents, timestep, pass_inputs[pass_])

    return _loop(predict, noise, guidance)


def _plain(transformer: MultiTalkTransformer, inputs: Mapping[Pass, ForwardInputs], noise: Tensor) -> Tensor:
    def predict(latents: Tensor, timestep: Tensor, step: int, pass_: Pass) -> Tensor:
        return plain.velocity(transformer, latents, timestep, inputs[pass_])

    return _loop(predict, noise, Guidance(SCALES[3]))


def _loop(predict: Predict, noise: Tensor, guidance: Guidance) -> Tensor:
    return denoise(
        predict, noise, timesteps(STEPS, SHIFT), guidance, NoAnchor(), EulerSampler(), lambda step, clean: None
    )
