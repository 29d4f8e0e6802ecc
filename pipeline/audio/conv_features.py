"""The convolutions in front of wav2vec 2.0, a piece of the sound at a time, so that long audio needs no more memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

PIECE_FRAMES = 500  # 10 s of sound; the first layer of the base model then holds 65 MB, where 600 s would hold 4 GB


def reach(extractor: nn.Module) -> int:
    """Samples that one feature sees: 400 for the published encoders."""
    samples = 1
    for layer in reversed(extractor.conv_layers):
        samples = (samples - 1) * layer.conv.stride[0] + layer.conv.kernel_size[0]
    return samples


def conv_features(extractor: nn.Module, waveform: Tensor) -> Tensor:
    """
    What `extractor` (transformers' `Wav2Vec2FeatureEncoder`) makes of a `waveform` (`n`): `c frames`.

    The same numbers as in one go but for rounding: no layer pads, and the one that looks at the whole sound, the group
    norm of the first layer, gets its statistics in a pass of its own.
    """
    first, *others = extractor.conv_layers
    if isinstance(first.layer_norm, nn.GroupNorm):  # else it norms each frame for itself, as the large models do
        first = _settled(first, waveform)
    hop = math.prod(layer.conv.stride[0] for layer in extractor.conv_layers)
    features = []
    for samples in _pieces(waveform, reach(extractor), hop, PIECE_FRAMES):
        hidden = first(samples[None, None])
        for layer in others:
            hidden = layer(hidden)
        features.append(hidden[0])
    return torch.cat(features, dim=-1)


def _settled(layer: nn.Module, waveform: Tensor) -> Callable[[Tensor], Tensor]:
    """`layer` with the scale and shift that its group norm, a group for each channel, has over the whole waveform."""
    conv, norm = layer.conv, layer.layer_norm
    count, total, squares = 0, 0.0, 0.0
    for samples in _pieces(waveform, conv.kernel_size[0], conv.stride[0], PIECE_FRAMES * 16):
        hidden = conv(samples[None, None])[0].double()
        count += hidden.shape[-1]
        total = total + hidden.sum(dim=-1)
        squares = squares + hidden.square().sum(dim=-1)
    mean = total / count
    scale = norm.weight.double() / (squares / count - mean**2 + norm.eps).sqrt()
    shift = norm.bias.double() - mean * scale
    scale, shift = scale.to(waveform.dtype)[:, None], shift.to(waveform.dtype)[:, None]
    return lambda samples: layer.activation(conv(samples) * scale + shift)


def _pieces(waveform: Tensor, reach: int, hop: int, num_frames: int) -> Iterator[Tensor]:
    """The samples that give `num_frames` outputs at a time: neighbours share what both of them see."""
    total = (waveform.shape[-1] - reach) // hop + 1
    for start in range(0, total, num_frames):
        last = min(start + num_frames, total) - 1
        yield waveform[start * hop : last * hop + reach]
