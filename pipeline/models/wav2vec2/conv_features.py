"""Convolutional features of wav2vec 2.0, a chunk of the sound at a time: long audio needs no more memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d

CHUNK_FRAMES = 100  # 2 s of sound: what the base model's layers hold, 13 MB at most, stays near the processor


def receptive_field(extractor: Any) -> int:
    """Samples under one feature: 400 for the published encoders."""
    samples = 1
    for layer in reversed(extractor.conv_layers):
        samples = (samples - 1) * layer.conv.stride[0] + layer.conv.kernel_size[0]
    return samples


def conv_features(extractor: Any, waveform: Tensor) -> Tensor:
    """The features `c frames` of a `waveform` (`n`) by `extractor`, transformers' `Wav2Vec2FeatureEncoder`.

    The same numbers as in one go but for rounding: no layer pads, and the statistics of the one that spans the whole
    sound, the group norm of the first layer, are computed beforehand.
    """
    first, *others = extractor.conv_layers
    if isinstance(first.layer_norm, nn.GroupNorm):  # else it norms each frame for itself, as the large models do
        first = _with_global_norm(first, waveform)
    hop = math.prod(layer.conv.stride[0] for layer in extractor.conv_layers)
    features = []
    for samples in _chunks(waveform, receptive_field(extractor), hop, CHUNK_FRAMES):
        hidden = first(samples[None, None])
        for layer in others:
            hidden = layer(hidden)
        features.append(hidden[0])
    return torch.cat(features, dim=-1)


def _with_global_norm(layer: Any, waveform: Tensor) -> Callable[[Tensor], Tensor]:
    """`layer` with the group norm that it has over the whole waveform, a group for each channel, in its convolution.

    A channel is `w x` of the samples x under the kernel: over the waveform its mean is `w m` and its variance `w C w`,
    with x's mean `m` and covariance `C`. So the statistics need no convolution. They are computed in float64, on
    the CPU: Apple's devices have none.
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
    count, total, products = 0, torch.zeros(width).double(), torch.zeros(width, width).double()
    for samples in _chunks(waveform, width, hop, CHUNK_FRAMES * 64):  # 2 s of sound again
        rows = samples.double().unfold(0, width, hop)  # n k
        count, total, products = count + len(rows), total + rows.sum(dim=0), products + rows.mT @ rows
    mean = total / count
    return mean, products / count - torch.outer(mean, mean)


def _chunks(waveform: Tensor, width: int, hop: int, num_frames: int) -> Iterator[Tensor]:
    """The samples of `num_frames` kernels of `width`, a `hop` apart; neighbouring chunks overlap."""
    total = (waveform.shape[-1] - width) // hop + 1
    for start in range(0, total, num_frames):
        last = min(start + num_frames, total) - 1
        yield waveform[start * hop : last * hop + width]
