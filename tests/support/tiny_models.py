"""One tiny set for all tests, and what its transformer makes of fixed inputs."""

from collections.abc import Callable
from functools import cache

import torch
from multitalk_pack.benchmarks.tiny_weights import WeightSizes, tiny_adapter, tiny_transformer
from multitalk_pack.pipeline.models.transformer.model import MultiTalkTransformer
from multitalk_pack.pipeline.shapes import LatentSize
from torch import Tensor

SIZES = WeightSizes()


def make(
    part: Callable[[WeightSizes, torch.Generator], dict[str, Tensor]], sizes: WeightSizes = SIZES
) -> dict[str, Tensor]:
    """A part's random weights, the same ones each time, native names."""
    return part(sizes, torch.Generator().manual_seed(1))


@cache
def base_state() -> dict[str, Tensor]:
    """The base's weights, native names."""
    return make(tiny_transformer)


@cache
def adapter_state() -> dict[str, Tensor]:
    """The audio weights, native names."""
    return tiny_adapter(SIZES, torch.Generator().manual_seed(2))


@torch.inference_mode()
def velocity(model: MultiTalkTransformer) -> Tensor:
    """The transformer's velocity for fixed random inputs; every weight has a part in it."""
    generator = torch.Generator().manual_seed(3)
    size = LatentSize(2, 4, 4)
    condition, image, prompt = ((20, *size.shape[1:]), (257, model.config.image_dim), (7, model.config.text_dim))
    window = model.prepare_window(size, *(torch.randn(shape, generator=generator) for shape in (condition, image)))
    audio = torch.randn(1, 5, model.config.audio_window, *model.config.audio_features, generator=generator)
    pass_inputs = model.prepare_pass(window, torch.randn(prompt, generator=generator), audio)
    return model(torch.randn(size.shape, generator=generator), 700.0, pass_inputs)
