"""Other implementations beside ours: diffusers' own classes, and files that the command line names."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from pipeline.models.transformer.model import MultiTalkTransformer

from .measure import Settings, Work
from .sizes import ForwardInputs
from .tiny_weights import TinySet

Forward = Callable[[Tensor, float], Tensor]
"""From latents `16 t h w` and timestep (1000..0) to the velocity `16 t h w`."""

Render = Callable[[TinySet, int, int], Tensor]
"""From files of weights, a number of frames and of steps to frames `c f h w`, -1..1."""


def peer_forwards(transformer: MultiTalkTransformer, inputs: ForwardInputs, settings: Settings) -> dict[str, Forward]:
    """Forward of every peer file, by the peer's name.

    A peer is a Python file with a function `forward(transformer, inputs) -> Forward`, which puts our weights into its
    own network, or with `render`, see `peer_renders`, or with both. So the published program, say, is measured from a
    folder that is no part of this repository.
    """
    return {name: peer.forward(transformer, inputs) for name, peer in _peers_with("forward", settings)}


def peer_renders(settings: Settings) -> dict[str, Render]:
    """Whole run of every peer file that has a function `render`, by the peer's name."""
    return {name: peer.render for name, peer in _peers_with("render", settings)}


def without_audio(transformer: MultiTalkTransformer, inputs: ForwardInputs, latents: Tensor, timestep: float) -> Work:
    """Forward of diffusers' Wan transformer with the same weights, which has no audio and so does less."""
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
    text = torch.nn.functional.pad(inputs.prompt_embeds, (0, 0, 0, config.text_len - len(inputs.prompt_embeds)))
    dtype = transformer.compute_dtype
    arguments = (
        torch.cat((latents, inputs.condition))[None].to(dtype),
        torch.tensor([timestep], device=latents.device),
        text[None].to(dtype),
        inputs.image_embeds[None].to(dtype),
    )
    return partial(_first, wan.eval().requires_grad_(False), *arguments)


def _first(network: torch.nn.Module, *arguments: Tensor) -> Tensor:
    return network(*arguments, return_dict=False)[0][0].float()


def _peers_with(function: str, settings: Settings) -> Iterator[tuple[str, Any]]:
    for name, path in settings.peers:
        peer = _load(name, path)
        if hasattr(peer, function):
            yield name, peer


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"peer_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
