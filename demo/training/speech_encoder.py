"""Phase 2: a wav2vec 2.0 of three layers learns to hear what a mouth does.

Every layer has a small head that reads the mouth's opening and width from it, so that all layers say something useful
of each video frame. The heads are not exported. Most of the speech is pseudowords read by the rules of many languages:
after thirty sentences alone, openings were right to a correlation of 0.983 in those, and of 0.975 in others.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2Model

from pipeline.audio.waveform import SAMPLE_RATE_HZ
from pipeline.shapes import FPS

from ..lip_sync import implied_mouth
from ..speech import random_utterance
from .run import Run, Setup

NUM_STEPS, RATE = 2000, 0.01
BATCH, DURATIONS_S = 6, (1.5, 6.0)
WIDTH, LAYERS, HEAD_WIDTH, CONVOLUTIONS = 128, 3, 64, 32
PSEUDOWORD_SHARE = 0.8
SILENCE_SHARE, PAUSE_SHARE, NOISE_SHARE = 0.06, 0.4, 0.4  # of the sounds
NOISE_DB = (-90.0, -55.0)
LOSS_WEIGHT = 10.0  # keeps the clipping of gradients at 1 for the first steps alone


class MouthPredictor(nn.Module):
    """Speech encoder with the heads that it is trained by."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Wav2Vec2Model(
            Wav2Vec2Config(
                hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=LAYERS,
                num_attention_heads=WIDTH // HEAD_WIDTH, conv_dim=(CONVOLUTIONS,) * 7, layerdrop=0.0,
                mask_time_prob=0.0, hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
                feat_proj_dropout=0.0,
            )
        )  # fmt: skip
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 2) for _ in range(LAYERS))

    def forward(self, waveforms: Tensor) -> Tensor:
        """Opening and width, `layers b f 2`, of waveforms `b n` of whole video frames."""
        num_frames = waveforms.shape[1] * FPS // SAMPLE_RATE_HZ

        def resample(module: nn.Module, args: tuple, features: Tensor) -> Tensor:
            return F.interpolate(features, size=num_frames, mode="linear", align_corners=True)

        hook = self.encoder.feature_extractor.register_forward_hook(resample)
        states = self.encoder(waveforms, output_hidden_states=True).hidden_states[1:]
        hook.remove()
        return torch.stack([head(state) for head, state in zip(self.heads, states, strict=True)])


def train(setup: Setup) -> MouthPredictor:
    """Trained encoder with its heads; the training goes on where it stopped."""
    torch.manual_seed(setup.seed)
    run = Run("speech_encoder", MouthPredictor(), NUM_STEPS, RATE, setup)
    for step in run:
        waveforms, mouths = (tensor.to(setup.device) for tensor in batch(np.random.default_rng((setup.seed, step))))
        predictions = run.model(waveforms)
        loss = LOSS_WEIGHT * (predictions - mouths).square().mean()
        openings = torch.stack([predictions[-1, ..., 0].flatten(), mouths[..., 0].flatten()])
        run.update(loss, opening_correlation=torch.corrcoef(openings.detach())[0, 1].item())
    return run.result()


def batch(random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Waveforms `b n` of one length and their mouths `b f 2`."""
    num_samples = int(random.uniform(*DURATIONS_S) * FPS) * SAMPLE_RATE_HZ // FPS
    examples = [_example(random, num_samples) for _ in range(BATCH)]
    waveforms, mouths = (torch.from_numpy(np.stack(parts).astype(np.float32)) for parts in zip(*examples, strict=True))
    return waveforms, mouths


def _example(random: np.random.Generator, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Waveform `n` of speech with a pause, of silence or with noise, and its mouth `f 2`."""
    samples = np.zeros(num_samples, np.float32)
    if random.random() >= SILENCE_SHARE:
        duration_s = num_samples / SAMPLE_RATE_HZ
        samples = random_utterance(random, duration_s, pseudoword_share=PSEUDOWORD_SHARE).samples
    if random.random() < PAUSE_SHARE:
        start, length = random.integers(0, num_samples, 2)
        samples[start : start + length] = 0
    mouth = np.stack(implied_mouth(samples), axis=1)
    if random.random() < NOISE_SHARE:
        samples = samples + random.normal(size=num_samples) * 10 ** (random.uniform(*NOISE_DB) / 20)
    return samples, mouth
