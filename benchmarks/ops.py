"""Parts of a block, each beside its plain formula and, where it only moves memory, beside a copy of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import conv3d, scaled_dot_product_attention

from pipeline.models.transformer.block import gated_residual
from pipeline.models.transformer.model import MultiTalkTransformer
from pipeline.models.transformer.rope import grid_rotation, rotate
from pipeline.models.transformer.speakers import reference_attention
from pipeline.sampling.guidance import Pass

from . import plain
from .measure import Settings, Work, measure
from .report import Row, comparison_rows
from .sizes import SIZES, Size, random_inputs, random_latents, random_transformer

DEFAULT_SIZES = {"cpu": ("mid",), "cuda": ("480p",)}
GOALS = {"reference map": {"plain formulas": 2.0}, "audio attention": {"plain formulas": 2.5}}


def run(settings: Settings) -> Iterator[Row]:
    """Rows of all parts at each size."""
    for name in settings.sizes or DEFAULT_SIZES[settings.device.type]:
        size = SIZES[name]
        transformer = random_transformer(size, settings.device, settings.dtype)
        for part, variants in _parts(transformer, size).items():
            for row in comparison_rows(f"{part}, {size.label()}", measure(variants, settings), GOALS.get(part)):
                yield row | {"relative error": None} if row["against"] == "copy" else row


def _parts(transformer: MultiTalkTransformer, size: Size) -> dict[str, Mapping[str, Work]]:
    grid = torch.Size((size.latents.t, size.latents.h // 2, size.latents.w // 2))
    random = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(transformer.device, transformer.dtype)

    tokens, change = draw(grid.numel(), size.width), draw(grid.numel(), size.width)
    return {
        "rope": _rope(tokens, grid, size),
        "norm and modulation": _norm(transformer, tokens, *draw(2, 1, size.width).float()),
        "gate": _gate(tokens, change, draw(1, size.width).float()),
        "attention": _attention(tokens, size),
        "reference map": _reference_map(tokens, change, grid, size),
        "audio attention": _audio_attention(transformer, tokens, grid, draw),
        "patches": _patches(transformer, size),
    }


def _rope(tokens: Tensor, grid: torch.Size, size: Size) -> dict[str, Work]:
    heads = tokens.unflatten(-1, (size.heads, -1))
    rope = grid_rotation(*grid, heads.shape[-1]).to(tokens.device)
    tables = plain.rope_tables(heads.shape[-1], tokens.device)
    return {
        "ours": partial(rotate, heads, rope),
        "plain formulas": partial(plain.rope, heads, grid, tables),
        "copy": heads.clone,
    }


def _norm(transformer: MultiTalkTransformer, tokens: Tensor, shift: Tensor, scale: Tensor) -> dict[str, Work]:
    return {
        "ours": partial(transformer.blocks[0].norm1, tokens, shift, scale),
        "plain formulas": lambda: (plain.norm(tokens).float() * (1 + scale) + shift).to(tokens.dtype),
        "copy": tokens.clone,
    }


def _gate(tokens: Tensor, change: Tensor, gate: Tensor) -> dict[str, Work]:
    return {
        "ours": partial(gated_residual, tokens, change, gate),
        "plain formulas": lambda: (tokens.float() + change.float() * gate).to(tokens.dtype),
        "copy": tokens.clone,
    }


def _attention(tokens: Tensor, size: Size) -> dict[str, Work]:
    """Kernel of choice beside the slow reference."""
    heads = tokens.unflatten(-1, (size.heads, -1)).transpose(0, 1)[None]

    def math() -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return scaled_dot_product_attention(heads, heads, heads)

    return {"ours": partial(scaled_dot_product_attention, heads, heads, heads), "math kernel": math}


def _reference_map(query: Tensor, key: Tensor, grid: torch.Size, size: Size) -> dict[str, Work]:
    """Reference map of two people side by side above a background."""
    query, key = (x.unflatten(-1, (size.heads, -1)) for x in (query, key))
    masks = torch.zeros(3, grid[1], grid[2], device=query.device)
    masks[0, :-1, : grid[2] // 2] = masks[1, :-1, grid[2] // 2 :] = masks[2, -1] = 1
    masks = masks.flatten(1)
    ours = (x.transpose(0, 1)[None].contiguous() for x in (query, key))
    return {
        "ours": partial(reference_attention, *ours, masks),
        "plain formulas": partial(plain.reference_attention, query, key, masks),
    }


def _audio_attention(
    transformer: MultiTalkTransformer, tokens: Tensor, grid: torch.Size, draw: Callable[..., Tensor]
) -> dict[str, Work]:
    """Attention to one voice; the plain formula computes its keys and values again, as published."""
    layer, audio = transformer.blocks[0].audio_cross_attn, transformer.config
    voices = draw(1, grid[0], audio.audio_tokens, audio.audio_dim)
    return {
        "ours": partial(layer, tokens, layer.audio_kv(voices)),
        "plain formulas": lambda: plain.audio_attention(layer, tokens, voices, None, grid[0]),
    }


def _patches(transformer: MultiTalkTransformer, size: Size) -> dict[str, Work]:
    latents, inputs = random_latents(size, transformer.device), random_inputs(transformer, size)[Pass.COND]
    pass_inputs = inputs.pass_inputs(transformer)
    layer = transformer.patch_embedding

    def plain_patches() -> Tensor:
        frames = torch.cat((latents, inputs.condition))[None].to(transformer.dtype)
        return conv3d(frames, layer.weight, layer.bias, stride=transformer.config.patch_size)[0].flatten(1).T

    return {"ours": lambda: transformer.embed(latents, 500.0, pass_inputs)[0], "plain formulas": plain_patches}
