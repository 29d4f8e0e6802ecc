"""Other implementations to be measured beside ours: diffusers' own classes, and files that the command line names."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from pipeline.models.transformer.model import MultiTalkTransformer

from .measure import Settings, Work
from .sizes import Told

Forward = Callable[[Tensor, float], Tensor]
"""From latents `16 t h w` and timestep (1000..0) to the velocity `16 t h w`."""


def peer_forwards(transformer: MultiTalkTransformer, told: Told, settings: Settings) -> dict[str, Forward]:
    """The forward of every peer file, by the peer's name.

    A peer is a Python file with a function `forward(transformer, told) -> Forward`, which puts our weights into its own
    network. So the published program, say, is measured from a folder that is no part of this repository.
    """
    return {name: _load(name, path).forward(transformer, told) for name, path in settings.peers}


def without_audio(transformer: MultiTalkTransformer, told: Told, latents: Tensor, timestep: float) -> Work:
    """diffusers' Wan transformer with the same weights; it hears nothing, and so does less."""
    config = transformer.config
    dim = config.num_attention_heads * config.attention_head_dim
    with torch.device(latents.device):
        wan = WanTransformer3DModel(
            patch_size=config.patch_size,
            num_attention_heads=config.num_attention_heads,
            attention_head_dim=config.attention_head_dim,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            text_dim=config.text_dim,
            freq_dim=config.freq_dim,
            ffn_dim=config.ffn_dim,
            num_layers=config.num_layers,
            image_dim=config.image_dim,
            added_kv_proj_dim=dim,
        )
    weights = transformer.state_dict()
    wan.load_state_dict({name: weights[name] for name in wan.state_dict()}, assign=True)
    text = torch.nn.functional.pad(told.prompt_embeds, (0, 0, 0, config.text_len - len(told.prompt_embeds)))
    dtype = transformer.compute_dtype
    inputs = (
        torch.cat((latents, told.condition))[None].to(dtype),
        torch.tensor([timestep], device=latents.device),
        text[None].to(dtype),
        told.image_embeds[None].to(dtype),
    )
    return partial(_first, wan.eval().requires_grad_(False), *inputs)


def _first(network: torch.nn.Module, *inputs: Tensor) -> Tensor:
    return network(*inputs, return_dict=False)[0][0].float()


def _load(name: str, path: Path):
    spec = importlib.util.spec_from_file_location(f"peer_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
