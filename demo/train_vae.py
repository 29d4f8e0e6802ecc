"""The first stage: a Wan VAE of base width 16 learns to see drawn faces, and then its decoder to hold still.

Its latents are kept near unit size and carry a little noise while it learns, so that the decoder forgives what the
transformer gets slightly wrong. The published model's fixed latent statistics are folded in on export.

Only the layers that halve or double the frame rate look into the past here; the weights that all other convolutions
have for it stay zero. With them every convolution adds to how far back a frame depends on others, a hundred frames in
all, and a VAE that has learnt from short clips lets colours drift after a dozen frames. Without them the fifth latent
frame is as good as the thousandth, and a step costs less.

The decoder goes on learning alone, by a loss in which what should not move weighs most. Last, both learn to see eyes: a
long video is coded anew in every window, and what a coding loses of an eye is lost again in each of them. In the end
they also see clips that have been coded before, and learn to give back what they were.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from torch import Tensor, nn

from .faces import draw, eye_box, place, random_appearance, random_background, random_motion
from .numbers import fast_numbers
from .run import RUN_FOLDER, Run, phase_at, total_steps

BASE_DIM, LATENT_CHANNELS = 16, 16
LATENT_NOISE = 0.1
FRAME_SIZE = 128


@dataclass(frozen=True)
class Phase:
    """Clips of one size for a number of steps: small ones first."""

    steps: int
    batch: int
    num_frames: int
    size: int
    eye_weight: float = 1.0  # in the loss, where mouths have 3 and the rest of the picture 1
    codings: int = 0  # how often, at most, a clip has been coded before: what those took is to be mended


PHASES = (Phase(400, 4, 5, 64), Phase(400, 2, 17, 64), Phase(300, 1, 33, 64), Phase(200, 1, 17, 128))
DECODER_PHASES = (Phase(1400, 2, 17, 64), Phase(3800, 1, 17, 128))
EYE_PHASES = (
    Phase(1100, 2, 17, 64, eye_weight=4.0), Phase(500, 1, 17, 128, eye_weight=4.0),
    Phase(700, 2, 17, 64, eye_weight=6.0, codings=2), Phase(400, 1, 17, 128, eye_weight=6.0, codings=2),
)  # fmt: skip
EYE_RESTARTS = {1600: 0.5}
STEADINESS, DECODER_STEADINESS = 0.5, 8.0  # the weight of changes from frame to frame
HUES, STAYING = 1.0, 0.3  # while eyes are learnt: the weights of hues and of latents that move


class PresentConv(WanCausalConv3d):
    """A causal convolution whose weights for the past are zero and stay so."""

    def __init__(self, like: WanCausalConv3d) -> None:
        super().__init__(like.in_channels, like.out_channels, like.kernel_size, padding=1)
        with torch.no_grad():
            self.weight[:, :, :-1] = 0

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        """The frames of `x`, each by itself; `cache_x`, those before them, has no say."""
        del cache_x
        weight = self.weight[:, :, -1].contiguous(memory_format=torch.channels_last)  # 1.7 times as fast on a CPU
        frames = x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        frames = F.conv2d(frames, weight, self.bias, padding=1)
        return frames.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


def build() -> AutoencoderKLWan:
    """The VAE of the published model at a sixth of its width."""
    vae = AutoencoderKLWan(base_dim=BASE_DIM, z_dim=LATENT_CHANNELS)
    with torch.no_grad():  # fresh latents are a tenth of what they should be, and would drown in the noise
        vae.quant_conv.weight.mul_(10)
    _forget_past(vae)
    return vae


def _forget_past(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, WanCausalConv3d) and child.kernel_size == (3, 3, 3):
            setattr(module, name, PresentConv(child))
        else:
            _forget_past(child)


def train(seed: int, device: torch.device) -> AutoencoderKLWan:
    """Trains, or goes on training; returns the averaged model."""
    torch.manual_seed(seed)
    run = Run("vae", build().to(device), total_steps(PHASES), rate=0.02, averaging=0.98)
    for step in run:
        frames, weights = batch(np.random.default_rng((seed, step)), phase_at(step, PHASES))
        loss, psnr = loss_of(run.model, frames.to(device), weights.to(device), step)
        run.update(loss, psnr=psnr)
    return run.averaged()


def train_decoder(seed: int, device: torch.device) -> AutoencoderKLWan:
    """The same for the decoder alone, from the trained VAE on."""
    vae = build()
    vae.load_state_dict(torch.load(RUN_FOLDER / "vae.pt", map_location="cpu")["average"])
    freeze_encoder(vae)
    run = Run("decoder", vae.to(device), total_steps(DECODER_PHASES), rate=0.01)
    for step in run:
        frames, weights = batch(np.random.default_rng((seed, 1, step)), phase_at(step, DECODER_PHASES))
        frames, weights = frames.to(device), weights.to(device)
        _, error = _reconstruct(run.model, frames, frames, step)
        flicker = 127.5 * error.detach().diff(dim=2).abs().mean()
        loss = _picture_loss(error, weights, DECODER_STEADINESS)
        run.update(loss, psnr=_psnr(error), flicker=flicker.item())
    return run.averaged()


def train_eyes(seed: int, device: torch.device) -> AutoencoderKLWan:
    """The same for encoder and decoder together, from the trained decoder on; latents move where that helps."""
    vae = build()
    vae.load_state_dict(torch.load(RUN_FOLDER / "decoder.pt", map_location="cpu")["average"])
    before = copy.deepcopy(vae).requires_grad_(False).to(device)
    run = Run("eyes", vae.to(device), total_steps(EYE_PHASES), rate=0.008, restarts=EYE_RESTARTS)
    for step in run:
        phase, random = phase_at(step, EYE_PHASES), np.random.default_rng((seed, 2, step))
        frames, weights = batch(random, phase)
        frames, weights = frames.to(device), weights.to(device)
        worn = coded(run.model, frames, int(random.integers(phase.codings + 1)))
        latents, error = _reconstruct(run.model, worn, frames, step)
        with torch.no_grad(), fast_numbers(device):
            moved = (latents - before.encode(frames).latent_dist.mode().float()).square().mean()
        hues = (weights * (error - error.mean(dim=1, keepdim=True)).abs()).mean()
        loss = _picture_loss(error, weights, DECODER_STEADINESS) + HUES * hues + STAYING * moved + _size_loss(latents)
        run.update(loss, psnr=_psnr(error), moved=moved.item())
    return run.averaged()


@torch.no_grad()
def coded(vae: AutoencoderKLWan, frames: Tensor, times: int) -> Tensor:
    """Frames in -1..1 that have been latents, and then pictures of 8 bits, `times` times."""
    with fast_numbers(frames.device):
        for _ in range(times):
            pictures = vae.decode(vae.encode(frames).latent_dist.mode()).sample.float()
            frames = ((pictures + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1
    return frames


def freeze_encoder(vae: AutoencoderKLWan) -> None:
    """From now on the decoder learns alone."""
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)


def loss_of(vae: AutoencoderKLWan, frames: Tensor, weights: Tensor, step: int) -> tuple[Tensor, float]:
    """The pictures' loss and that of the latents' size; returns it with the pictures' PSNR in dB."""
    latents, error = _reconstruct(vae, frames, frames, step)
    loss = _picture_loss(error, weights, STEADINESS) + _size_loss(latents)
    return loss, _psnr(error)


def _psnr(error: Tensor) -> float:
    """In dB, of colours in -1..1."""
    return 10 * math.log10(4 / error.detach().square().mean().item())


def _reconstruct(vae: AutoencoderKLWan, seen: Tensor, wanted: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """The latents, and what the frames have become through them and a little noise, less what is wanted."""
    noise = torch.Generator().manual_seed(step)
    with fast_numbers(seen.device):
        latents = vae.encode(seen).latent_dist.mode()
        noisy = latents + LATENT_NOISE * torch.randn(latents.shape, generator=noise).to(latents)
        drawn = vae.decode(noisy).sample
    return latents.float(), drawn.float() - wanted


def _picture_loss(error: Tensor, weights: Tensor, steadiness: float) -> Tensor:
    """Colours, tints of larger patches, edges and changes from frame to frame, heavier at mouths."""
    colours = (weights * (error.abs() + 2 * error.square())).mean()
    tints = F.avg_pool3d(error, (1, 8, 8)).abs().mean()
    edges = (weights[..., 1:] * error.diff(dim=-1).abs()).mean() + (
        weights[..., 1:, :] * error.diff(dim=-2).abs()
    ).mean()
    time = (weights * error.diff(dim=2).abs()).mean()
    return colours + 4 * tints + edges + steadiness * time


def _size_loss(latents: Tensor) -> Tensor:
    """Of each channel's size above 1 and, a little, of its mean."""
    every = (0, 2, 3, 4)
    size = (latents.square().mean(dim=every) - 1).clamp(min=0).mean() + 0.01 * latents.mean(dim=every).square().mean()
    return 0.02 * size


def batch(random: np.random.Generator, phase: Phase) -> tuple[Tensor, Tensor]:
    """`b 3 f h w` frames in -1..1, and the loss weights `b 1 1 h w`."""
    clips = [_clip(random, phase) for _ in range(phase.batch)]
    frames = torch.from_numpy(np.stack([frames for frames, _ in clips]))
    weights = torch.from_numpy(np.stack([weights for _, weights in clips]))
    return frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1, weights[:, None, None].float()


def _clip(random: np.random.Generator, phase: Phase) -> tuple[np.ndarray, np.ndarray]:
    """A crop of a clip of somebody, often around the mouth; a sixteenth are grey after the first frame."""
    people = int(random.integers(1, 3))
    width = FRAME_SIZE if people == 1 else FRAME_SIZE * 3 // 2
    count = phase.num_frames + 24
    cast = []
    for _ in range(people):
        opening, mouth_width = (
            np.clip(_wander(random, count, 0.35, 0.4), 0, 1),
            np.clip(_wander(random, count, 0, 0.5), -1, 1),
        )
        motion = random_motion(random, opening, mouth_width, random.choice([-1, 1]), random.choice([-1, 1]))
        cast.append((random_appearance(random), motion))
    start = int(random.integers(0, 24))
    cast = [
        (who, type(motion)(*(values[start : start + phase.num_frames] for values in vars(motion).values())))
        for who, motion in cast
    ]
    frames = draw(cast, random_background(random), FRAME_SIZE, width)
    weights = np.ones(frames.shape[1:3], np.float32)
    centres = []
    for index, (who, _) in enumerate(cast):
        x, y, unit = place(who, index, people, FRAME_SIZE, width)
        weights[eye_box(who, index, people, FRAME_SIZE, width)] = phase.eye_weight
        mouth_y = y + who.mouth_height * unit
        weights[int(mouth_y - 0.35 * unit) : int(mouth_y + 0.35 * unit), int(x - 0.5 * unit) : int(x + 0.5 * unit)] = 3
        centres.append((x, mouth_y - random.choice([0, 0.65]) * unit))
    x, y = centres[random.integers(people)] if random.random() < 0.7 else random.uniform(0, 1, 2) * (width, FRAME_SIZE)
    left = int(np.clip(x - phase.size / 2 + random.uniform(-8, 8), 0, width - phase.size))
    top = int(np.clip(y - phase.size / 2 + random.uniform(-8, 8), 0, FRAME_SIZE - phase.size))
    crop = np.s_[top : top + phase.size, left : left + phase.size]
    frames, weights = frames[:, crop[0], crop[1]].copy(), weights[crop]
    if random.random() < 1 / 16:
        frames[1:] = 128
    return frames, weights


def _wander(random: np.random.Generator, count: int, middle: float, spread: float) -> np.ndarray:
    """A track that moves like a mouth: noise that has forgotten itself after a few frames."""
    noise = np.convolve(random.normal(size=count + 8), np.hanning(6) / np.linalg.norm(np.hanning(6)), "same")[4:-4]
    return middle + spread * 1.3 * noise
