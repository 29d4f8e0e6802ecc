"""Speech encoder, against the published way: attention maps computed, the convolutions in one go."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import Wav2Vec2Config, Wav2Vec2Model

from pipeline.audio.waveform import SAMPLE_RATE_HZ
from pipeline.models.wav2vec2.encoder import encode
from pipeline.shapes import FPS

from .measure import Settings, measure
from .report import Row, comparison_rows

SIZES = {"smoke": 1, "10s": 10, "60s": 60}  # seconds of sound
GOALS = {"10s": 1.0, "60s": 1.2}


def run(settings: Settings) -> Iterator[Row]:
    """Rows of each length with wav2vec 2.0 base."""
    for name in settings.sizes or ("10s", "60s"):
        config = Wav2Vec2Config(num_hidden_layers=2 if name == "smoke" else 12, attn_implementation="eager")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            eager = Wav2Vec2Model(config).eval().to(settings.device)
        config = Wav2Vec2Config(num_hidden_layers=config.num_hidden_layers, attn_implementation="sdpa")
        fused = Wav2Vec2Model(config).eval().to(settings.device)
        fused.load_state_dict(eager.state_dict())
        waveform = torch.randn(SIZES[name] * SAMPLE_RATE_HZ, generator=torch.Generator().manual_seed(1)) * 0.1
        num_frames = SIZES[name] * FPS
        variants = {
            "ours": partial(encode, fused, waveform, num_frames),
            "published way": partial(_published_encode, eager, waveform, num_frames),
        }
        yield from comparison_rows(
            f"{SIZES[name]} s of sound", measure(variants, settings), {"published way": GOALS.get(name)}
        )


def _published_encode(model: Wav2Vec2Model, waveform: Tensor, num_frames: int) -> Tensor:
    """Features `f layers channels`, resampled between the convolutions and the projection."""

    def resample(_module: object, _inputs: object, features: Tensor) -> Tensor:
        return interpolate(features, size=num_frames, mode="linear", align_corners=True)

    hook = model.feature_extractor.register_forward_hook(resample)
    try:
        output = model(waveform[None].to(model.device), output_hidden_states=True, output_attentions=True)
    finally:
        hook.remove()
    return torch.stack(output.hidden_states[1:], 2)[0].cpu()
