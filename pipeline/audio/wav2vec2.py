"""Speech features for each video frame, from wav2vec 2.0 (Baevski et al., arXiv:2006.11477)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import Wav2Vec2Model

VARIANCE_EPS = 1e-7  # of the published feature extractor


@torch.no_grad()
def encode(model: Wav2Vec2Model, waveform: Tensor, num_frames: int, normalize: bool = False) -> Tensor:
    """
    What every layer of the encoder makes of the audio, at the video's frame rate.

    The convolutional features are resampled from 50 Hz to the video frames before the transformer sees them, as
    MultiTalk was trained; the embedding below the first layer is left out.

    Args:
        waveform: `n`, mono, 16 kHz.
        num_frames: video frames that the waveform covers.
        normalize: bring the waveform to zero mean and unit variance, for checkpoints whose
            `preprocessor_config.json` has `do_normalize`.

    Returns:
        `num_frames layers channels`, float32 on the CPU.
    """
    model.eval()  # in training mode it would mask features and drop whole layers
    if normalize:
        waveform = (waveform - waveform.mean()) / (waveform.var(correction=0) + VARIANCE_EPS).sqrt()
    with _resampled_features(model.feature_extractor, num_frames):
        outputs = model(waveform[None].to(model.device, model.dtype), output_hidden_states=True)
    return torch.cat(outputs.hidden_states[1:]).transpose(0, 1).float().cpu()


@contextmanager
def _resampled_features(feature_extractor: nn.Module, num_frames: int) -> Iterator[None]:
    """Inside, the convolutional features `b c n` come out as `b c num_frames`, both end points kept."""

    def resample(module: nn.Module, args: tuple, features: Tensor) -> Tensor:
        return interpolate(features, size=num_frames, mode="linear", align_corners=True)

    handle = feature_extractor.register_forward_hook(resample)
    try:
        yield
    finally:
        handle.remove()
