"""Speech features for each video frame, from wav2vec 2.0 (Baevski et al., arXiv:2006.11477)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ...errors import AudioError
from .conv_features import conv_features, receptive_field

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import Wav2Vec2Model

VARIANCE_EPS = 1e-7  # of the published feature extractor


@torch.no_grad()
def encode(model: Wav2Vec2Model, waveform: Tensor, num_frames: int, normalize: bool = False) -> Tensor:
    """The output of every layer of the encoder, at the video's frame rate.

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
    shortest = receptive_field(model.feature_extractor)
    if len(waveform) < shortest:
        raise AudioError(f"The speech encoder needs {shortest} samples, got {len(waveform)}. Append silence.")
    model.eval()  # in training mode it would mask features and drop whole layers
    if normalize:
        waveform = (waveform - waveform.mean()) / (waveform.var(correction=0) + VARIANCE_EPS).sqrt()
    waveform = waveform.to(model.device, model.dtype)
    features = conv_features(model.feature_extractor, waveform)[None]
    features = interpolate(features, size=num_frames, mode="linear", align_corners=True)
    with _fixed_output(model.feature_extractor, features):
        outputs = model(waveform[None, :shortest], output_hidden_states=True)
    return torch.cat(outputs.hidden_states[1:]).transpose(0, 1).float().cpu()


@contextmanager
def _fixed_output(module: nn.Module, output: Tensor) -> Iterator[None]:
    """Context in which `module` returns `output`, whatever its input.

    So the model's own forward runs on, in any version of transformers, from features that were computed elsewhere.
    """
    handle = module.register_forward_hook(lambda *_: output)
    try:
        yield
    finally:
        handle.remove()
