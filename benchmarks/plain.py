"""Published formulas of the transformer, written down plainly, as a reference for ours.

It runs on the weights of our own network, with the same attention kernel, but shares no formula with it. Like the
published program it rotates by complex numbers in float64, computes the reference map for one speaker too, and computes
in every forward what stays the same over the steps.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import conv3d, gelu, layer_norm, pad, scaled_dot_product_attention, silu

from pipeline.models.transformer.model import MultiTalkTransformer

from .sizes import ForwardInputs

TABLE_LENGTH = 1024  # positions that the published tables cover
HEAD_SPLITS = 2  # the map is made for one half of the heads after the other
NEIGHBOURS = ((0, (0, 1, 2)), (1, (2,)), (2, (2,)), (3, (2, 3, 4)))  # video frame of a latent frame: its audio features


def velocity(model: MultiTalkTransformer, latents: Tensor, timestep: float | Tensor, inputs: ForwardInputs) -> Tensor:
    """Velocity `16 t h w` of `latents`, float32, as `model` gives it too."""
    frames = torch.cat((latents, inputs.condition))[None].to(model.dtype)
    patches = conv3d(frames, model.patch_embedding.weight, model.patch_embedding.bias, stride=model.config.patch_size)
    grid = patches.shape[2:]
    x = rearrange(patches, "1 c t h w -> (t h w) c")
    embedding, projection = _time(model, timestep)
    text, image = _context(model, inputs)
    voices = _voices(model, inputs.audio)
    tables = rope_tables(model.config.attention_head_dim, x.device)
    masks = _token_masks(inputs, grid, x)
    for block in model.blocks:
        x = _block(block, x, projection, (text, image, voices, masks), grid, tables)
    return _head(model, x, embedding, grid)


def _time(model: MultiTalkTransformer, timestep: float | Tensor) -> tuple[Tensor, Tensor]:
    layers = model.condition_embedder
    half = model.config.freq_dim // 2
    frequencies = torch.pow(10_000, -torch.arange(half, dtype=torch.float64) / half)
    angles = torch.as_tensor(timestep, dtype=torch.float64).cpu() * frequencies
    waves = torch.cat((angles.cos(), angles.sin())).float().to(model.device)[None]
    embedding = layers.time_embedder.linear_2(silu(layers.time_embedder.linear_1(waves)))
    return embedding, layers.time_proj(silu(embedding)).view(1, 6, -1)


def _context(model: MultiTalkTransformer, inputs: ForwardInputs) -> tuple[Tensor, Tensor]:
    num_padding = model.config.text_len - len(inputs.prompt_embeds)
    text = model.condition_embedder.text_embedder(pad(inputs.prompt_embeds, (0, 0, 0, num_padding)).to(model.dtype))
    return text, model.condition_embedder.image_embedder(inputs.image_embeds.to(model.dtype))


def _voices(model: MultiTalkTransformer, windows: Tensor) -> Tensor:
    """Audio tokens `p t n d` of `p f 5 layers channels`."""
    layers, windows = model.audio_proj, windows.to(model.dtype)
    first = layers.proj1(windows[:, 0].flatten(1))[:, None].relu()
    parts = [windows[:, 1 + frame :: 4, slot] for frame, slots in NEIGHBOURS for slot in slots]
    later = layers.proj1_vf(torch.stack(parts, dim=2).flatten(2)).relu()
    tokens = layers.proj3(layers.proj2(torch.cat((first, later), dim=1)).relu())
    return layers.norm(rearrange(tokens, "p t (n d) -> p t n d", n=layers.num_tokens))


def rope_tables(head_dim: int, device: torch.device) -> list[Tensor]:
    """Complex rotations of frame, row and column, each `positions k/2`."""
    space = 2 * (head_dim // 6)
    tables = []
    for width in (head_dim - 2 * space, space, space):
        exponents = torch.arange(0, width, 2, dtype=torch.float64, device=device) / width
        angles = torch.outer(torch.arange(TABLE_LENGTH, device=device), 1 / torch.pow(10_000.0, exponents))
        tables.append(torch.polar(torch.ones_like(angles), angles))
    return tables


def rope(x: Tensor, grid: torch.Size, tables: list[Tensor]) -> Tensor:
    """Rotation of `n heads k`; the table of the whole grid is computed for this one call."""
    t, h, w = grid
    rotations = torch.cat(
        (
            tables[0][:t].view(t, 1, 1, -1).expand(t, h, w, -1),
            tables[1][:h].view(1, h, 1, -1).expand(t, h, w, -1),
            tables[2][:w].view(1, 1, w, -1).expand(t, h, w, -1),
        ),
        dim=-1,
    ).reshape(t * h * w, 1, -1)
    pairs = torch.view_as_complex(x.double().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotations).flatten(-2).to(x.dtype)


def _block(
    block: nn.Module, x: Tensor, projection: Tensor, context: tuple[Tensor, ...], grid: torch.Size, tables: list[Tensor]
) -> Tensor:
    text, image, voices, masks = context
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (block.scale_shift_table.float() + projection).unbind(1)
    attn_in = (norm(x).float() * (1 + scale) + shift).to(x.dtype)
    attn_out, reference_map = _self_attention(block.attn1, attn_in, grid, tables, masks)
    x = (x.float() + attn_out.float() * gate).to(x.dtype)
    x = x + _cross_attention(block.attn2, norm(x, block.norm2), text, image)
    x = x + audio_attention(block.audio_cross_attn, norm(x, block.norm_x), voices, reference_map, grid[0])
    ffn_out = _feed_forward(block.ffn.net, (norm(x).float() * (1 + ffn_scale) + ffn_shift).to(x.dtype))
    return (x.float() + ffn_out.float() * ffn_gate).to(x.dtype)


def _feed_forward(layers: nn.Sequential, x: Tensor) -> Tensor:
    return layers[2](gelu(layers[0].proj(x), approximate="tanh"))


def norm(x: Tensor, layer: nn.Module | None = None) -> Tensor:
    """Layer norm in float32, with the weights of `layer` where it has any."""
    weight, bias = (None, None) if layer is None else (layer.weight.float(), layer.bias.float())
    return layer_norm(x.float(), x.shape[-1:], weight, bias, 1e-6).to(x.dtype)


def _rms_norm(x: Tensor, layer: nn.Module) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + layer.eps)).to(x.dtype) * layer.weight


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`n heads k` from `n heads k` and twice `m heads k`."""
    batched = (x.transpose(0, 1)[None] for x in (query, key, value))
    return scaled_dot_product_attention(*batched)[0].transpose(0, 1)


def _self_attention(
    layer: nn.Module, x: Tensor, grid: torch.Size, tables: list[Tensor], masks: Tensor
) -> tuple[Tensor, Tensor]:
    query, key, value = (
        projected.unflatten(-1, (layer.num_heads, -1))
        for projected in (
            _rms_norm(layer.to_q(x), layer.norm_q),
            _rms_norm(layer.to_k(x), layer.norm_k),
            layer.to_v(x),
        )
    )
    query, key = rope(query, grid, tables), rope(key, grid, tables)
    attn_out = _attend(query, key, value).flatten(1)
    return layer.to_out(attn_out), reference_attention(query, key, masks)


def reference_attention(query: Tensor, key: Tensor, masks: Tensor) -> Tensor:
    """Reference map `classes n`: mean attention of each token to each class of the first latent frame."""
    total = torch.zeros(len(masks), len(query), device=query.device)
    for query_part, key_part in zip(query.chunk(HEAD_SPLITS, 1), key.chunk(HEAD_SPLITS, 1), strict=True):
        scaled = (query_part * query_part.shape[-1] ** -0.5).transpose(0, 1)
        scores = scaled @ key_part[: masks.shape[1]].permute(1, 2, 0)
        weights = scores.softmax(dim=-1)  # heads n s
        total += torch.stack([((weights * mask).sum(-1) / mask.sum()).mean(0).float() for mask in masks])
    return total / HEAD_SPLITS


def _cross_attention(layer: nn.Module, x: Tensor, text: Tensor, image: Tensor) -> Tensor:
    def heads(y: Tensor) -> Tensor:
        return y.unflatten(-1, (layer.num_heads, -1))

    query = heads(_rms_norm(layer.to_q(x), layer.norm_q))
    text_kv = _attend(query, heads(_rms_norm(layer.to_k(text), layer.norm_k)), heads(layer.to_v(text)))
    image_key = heads(_rms_norm(layer.add_k_proj(image), layer.norm_added_k))
    return layer.to_out((text_kv + _attend(query, image_key, heads(layer.add_v_proj(image)))).flatten(1))


def audio_attention(layer: nn.Module, x: Tensor, voices: Tensor, reference_map: Tensor, t: int) -> Tensor:
    """Attention of each token to its speakers' voices, `n d`."""
    query = rearrange(layer.q_linear(x), "n (heads k) -> n heads k", heads=layer.num_heads)
    num_speakers, side_by_side = len(voices), rearrange(voices, "p t n d -> t (p n) d")
    pattern = "t n (two heads k) -> two t n heads k"
    key, value = rearrange(layer.kv_linear(side_by_side), pattern, two=2, k=layer.head_dim)
    if num_speakers > 1:
        starts = [20.0 * speaker for speaker in range(num_speakers)]
        query = _rotate(query, _positions(reference_map, starts))
        places = torch.tensor(starts, device=x.device).add(2).repeat_interleave(voices.shape[2])
        key = torch.stack([_rotate(frame, places) for frame in key])
    query = rearrange(query, "(t s) heads k -> t heads s k", t=t)
    attn_out = scaled_dot_product_attention(query, key.transpose(1, 2), value.transpose(1, 2))
    return layer.proj(rearrange(attn_out, "t heads s k -> (t s) (heads k)"))


def _positions(reference_map: Tensor, starts: list[float]) -> Tensor:
    """Position of every token: 12 where it attends most to the background, else within its person's range of 4."""
    winner, positions = reference_map.argmax(dim=0), torch.full_like(reference_map[0], 12.0)
    for speaker, start in enumerate(starts):
        row = reference_map[speaker]
        spread = start + 4 * (row - row.min()) / (row.max() - row.min() + 1e-8)
        positions = torch.where(winner == speaker, spread, positions)
    return positions


def _rotate(x: Tensor, positions: Tensor) -> Tensor:
    """`n heads k`, neighbouring channels rotated by `positions` (`n`) times the frequencies of one axis."""
    width = x.shape[-1]
    frequencies = 1 / torch.pow(10_000.0, torch.arange(0, width, 2, device=x.device) / width)
    angles = torch.outer(positions, frequencies)[:, None]
    first, second = x.float()[..., 0::2], x.float()[..., 1::2]
    cos, sin = angles.cos(), angles.sin()
    rotated = torch.stack((first * cos - second * sin, first * sin + second * cos), dim=-1)
    return rotated.flatten(-2).to(x.dtype)


def _token_masks(inputs: ForwardInputs, grid: torch.Size, x: Tensor) -> Tensor:
    """Masks `classes s` of persons and background; with one voice, three of ones, as published."""
    if len(inputs.audio) == 1:
        return torch.ones(3, grid[1] * grid[2], device=x.device)
    return inputs.speaker_masks[:, ::2, ::2].flatten(1).float()


def _head(model: MultiTalkTransformer, x: Tensor, embedding: Tensor, grid: torch.Size) -> Tensor:
    shift, scale = (model.scale_shift_table.float() + embedding[:, None]).unbind(1)
    layer = model.proj_out
    patches = (norm(x.float()) * (1 + scale) + shift) @ layer.weight.float().T + layer.bias.float()
    t, h, w = grid
    return rearrange(patches, "(t h w) (a b d c) -> c (t a) (h b) (w d)", t=t, h=h, w=w, a=1, b=2, d=2)
