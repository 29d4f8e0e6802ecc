"""The convolutions in front of wav2vec 2.0, a piece of the sound at a time, so that long audio needs no more memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d

PIECE_FRAMES = 100  # 2 s of sound: what the base model's layers hold, 13 MB at most, stays near the processor


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
    norm of the first layer, is told its statistics beforehand.
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
    """
    `layer` with the group norm that it has over the whole waveform, a group for each channel, in its convolution.

    A channel is `w x` of the samples x under the kernel: over the waveform its mean is `w m` and its variance `w C w`,
    with x's mean `m` and covariance `C`. So nothing is convolved for the statistics. They are made in float64, on the
    CPU: Apple's devices have none.
    """
    conv, norm = layer.conv, layer.layer_norm
    weight, gain, shift = (value.cpu().double() for value in (conv.weight, norm.weight, norm.bias))
    mean, covariance = _moments(waveform.cpu(), conv.kernel_size[0], conv.stride[0])
    variance = torch.einsum("cik,kl,cil->c", weight, covariance, weight)
    weight = weight * (gain / (variance + norm.eps).sqrt())[:, None, None]  # c 1 k
    bias = shift - (weight @ mean)[:, 0]  # one of the convolution itself would fall out
    weight, bias = weight.to(waveform), bias.to(waveform)
    return lambda samples: layer.activation(conv1d(samples, weight, bias, conv.stride))


def _moments(waveform: Tensor, width: int, hop: int) -> tuple[Tensor, Tensor]:
    """Mean `k` and covariance `k k` of `width` samples in a row, taken every `hop` samples, in float64."""
    count, total, products = 0, 0.0, 0.0
    for samples in _pieces(waveform, width, hop, PIECE_FRAMES * 64):  # 2 s of sound again
        rows = samples.double().unfold(0, width, hop)  # n k
        count, total, products = count + len(rows), total + rows.sum(dim=0), products + rows.mT @ rows
    mean = total / count
    return mean, products / count - torch.outer(mean, mean)


def _pieces(waveform: Tensor, reach: int, hop: int, num_frames: int) -> Iterator[Tensor]:
    """The samples that give `num_frames` outputs at a time: neighbours share what both of them see."""
    total = (waveform.shape[-1] - reach) // hop + 1
    for start in range(0, total, num_frames):
        last = min(start + num_frames, total) - 1
        yield waveform[start * hop : last * hop + reach]
