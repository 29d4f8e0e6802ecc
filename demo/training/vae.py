"""Phase 1: a Wan VAE of base width 16 learns to code drawn faces.

Its latents are kept near unit size and carry a little noise, so that the decoder forgives small errors of the
transformer. The published model's fixed latent statistics are folded in on export.

Only the layers that halve or double the frame rate look into the past; the weights that all other convolutions have for
it stay zero. With them every convolution adds to how far back a frame depends on others, a hundred frames in all, and a
VAE that has learnt from short clips lets colours drift after a dozen frames. Without them the fifth latent frame is as
good as the thousandth, and a step costs less.

A long video is coded again in every window, and a detail that one coding loses, such as an eye, is lost again in each
of them. So eyes weigh most, and in the second half of the phase clips may have been coded before: the VAE learns to
give back what they were.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from torch import Tensor, nn

from ..faces import random_appearance, random_background, random_motion
from ..scenes import HEIGHT, Scene
from .run import Run, Setup, autocast

BASE_DIM, LATENT_CHANNELS = 16, 16
NUM_STEPS, RATE = 6000, 0.02
NUM_FRAMES = 17
CROPS, CROP_SIZE = 2, 64  # of a step: clips and pixels
WHOLE_FROM = 0.7  # share of the steps from which on a step has one clip of whole frames instead
RECODINGS_FROM, MAX_RECODINGS = 0.5, 2  # share of the steps from which on clips may have been coded before; how often
EYE_WEIGHT, MOUTH_WEIGHT = 6.0, 3.0  # in the loss, where the rest of the picture has 1
STEADINESS = 4.0  # weight of changes from frame to frame
TINTS = 4.0  # weight of the mean colour of larger patches
LATENT_SIZE = 0.02  # weight of the latents' size
LATENT_NOISE = 0.1  # standard deviation
CENTRED_SHARE = 0.7  # of the crops that show eyes or a mouth
GREY_SHARE = 1 / 16  # of the crops that are grey after their first frame, as the condition of a window is


class PresentConv(WanCausalConv3d):
    """Causal convolution whose weights for the past are zero and stay so."""

    def __init__(self, like: WanCausalConv3d) -> None:
        super().__init__(like.in_channels, like.out_channels, like.kernel_size, padding=1)
        with torch.no_grad():
            self.weight[:, :, :-1] = 0

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        """Frames of `x`, each by itself; `cache_x`, those before them, has no say."""
        del cache_x
        weight = self.weight[:, :, -1].contiguous(memory_format=torch.channels_last)  # 1.7 times as fast on a CPU
        frames = x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        frames = F.conv2d(frames, weight, self.bias, padding=1)
        return frames.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


def build() -> AutoencoderKLWan:
    """VAE of the published model at a sixth of its width, with random weights."""
    vae = AutoencoderKLWan(base_dim=BASE_DIM, z_dim=LATENT_CHANNELS)
    with torch.no_grad():  # fresh latents are a tenth of unit size, and would drown in the noise
        vae.quant_conv.weight.mul_(10)
    _replace_convolutions(vae)
    return vae


def _replace_convolutions(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, WanCausalConv3d) and child.kernel_size == (3, 3, 3):
            setattr(module, name, PresentConv(child))
        else:
            _replace_convolutions(child)


def train(setup: Setup) -> AutoencoderKLWan:
    """Trained VAE; the training goes on where it stopped."""
    torch.manual_seed(setup.seed)
    run = Run("vae", build(), NUM_STEPS, RATE, setup)
    for step in run:
        random = np.random.default_rng((setup.seed, step))
        num_clips, size = (1, HEIGHT) if run.progress >= WHOLE_FROM else (CROPS, CROP_SIZE)
        frames, weights = (tensor.to(setup.device) for tensor in batch(random, num_clips, size))
        times = int(random.integers(MAX_RECODINGS + 1)) if run.progress >= RECODINGS_FROM else 0
        loss, psnr = _loss(run.model, recode(run.model, frames, times), frames, weights, step)
        run.update(loss, psnr_db=psnr)
    return run.result()


@torch.no_grad()
def recode(vae: AutoencoderKLWan, frames: Tensor, times: int) -> Tensor:
    """Frames -1..1 after `times` codings, each to latents and back to pictures of 8 bits."""
    with autocast(frames.device):
        for _ in range(times):
            pictures = vae.decode(vae.encode(frames).latent_dist.mode()).sample.float()
            frames = ((pictures + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1
    return frames


def _loss(vae: AutoencoderKLWan, frames: Tensor, targets: Tensor, weights: Tensor, seed: int) -> tuple[Tensor, float]:
    """Loss of a coding of `frames`, and its PSNR to `targets` in dB."""
    noise = torch.Generator().manual_seed(seed)
    with autocast(frames.device):
        latents = vae.encode(frames).latent_dist.mode()
        noisy = latents + LATENT_NOISE * torch.randn(latents.shape, generator=noise).to(latents)
        pictures = vae.decode(noisy).sample
    error = pictures.float() - targets
    psnr = 10 * math.log10(4 / error.detach().square().mean().item())
    return picture_loss(error, weights) + LATENT_SIZE * _size_loss(latents.float()), psnr


def picture_loss(error: Tensor, weights: Tensor) -> Tensor:
    """Loss of pixels, hues, tints of larger patches, edges and changes from frame to frame.

    Args:
        error: `b 3 f h w`.
        weights: `b 1 1 h w`, those of the pixels.
    """
    pixels = (weights * (error.abs() + 2 * error.square())).mean()
    hues = (weights * (error - error.mean(dim=1, keepdim=True)).abs()).mean()
    tints = F.avg_pool3d(error, (1, 8, 8)).abs().mean()
    columns = (weights[..., 1:] * error.diff(dim=-1).abs()).mean()
    rows = (weights[..., 1:, :] * error.diff(dim=-2).abs()).mean()
    changes = (weights * error.diff(dim=2).abs()).mean()
    return pixels + hues + TINTS * tints + columns + rows + STEADINESS * changes


def _size_loss(latents: Tensor) -> Tensor:
    """Loss of each channel's variance above 1 and, a little, of its mean."""
    axes = (0, 2, 3, 4)
    variance, mean = latents.square().mean(dim=axes), latents.mean(dim=axes)
    return (variance - 1).clamp(min=0).mean() + 0.01 * mean.square().mean()


def batch(random: np.random.Generator, num_clips: int, size: int) -> tuple[Tensor, Tensor]:
    """Frames `b 3 f size size` of clips, -1..1, and the weights `b 1 1 size size` of their pixels."""
    crops = [_crop(random, size) for _ in range(num_clips)]
    frames, weights = (torch.from_numpy(np.stack(parts)) for parts in zip(*crops, strict=True))
    return frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1, weights[:, None, None]


def _crop(random: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames `f size size 3` uint8 of a crop, and the weights `size size` of its pixels."""
    scene = _scene(random)
    frames, weights = scene.frames(), scene.loss_weights(EYE_WEIGHT, MOUTH_WEIGHT)
    if random.random() < CENTRED_SHARE:
        person = int(random.integers(len(scene.people)))
        box = scene.eye_box if random.random() < 0.5 else scene.mouth_box
        rows, columns = box(person)
        y, x = (rows.start + rows.stop) / 2, (columns.start + columns.stop) / 2
    else:
        y, x = random.uniform(0, 1, 2) * (HEIGHT, scene.width)
    top = int(np.clip(y - size / 2 + random.uniform(-8, 8), 0, HEIGHT - size))
    left = int(np.clip(x - size / 2 + random.uniform(-8, 8), 0, scene.width - size))
    frames = frames[:, top : top + size, left : left + size].copy()
    if random.random() < GREY_SHARE:
        frames[1:] = 128
    return frames, weights[top : top + size, left : left + size]


def _scene(random: np.random.Generator) -> Scene:
    """One or two people whose mouths move at random, some time after they have begun."""
    start = int(random.integers(0, 24))
    people = []
    for _ in range(random.integers(1, 3)):
        opening = np.clip(_track(random, start + NUM_FRAMES, 0.35, 0.4), 0, 1)
        width = np.clip(_track(random, start + NUM_FRAMES, 0, 0.5), -1, 1)
        motion = random_motion(random, opening, width, random.choice([-1, 1]), random.choice([-1, 1]))
        people.append((random_appearance(random), motion[start:]))
    return Scene(people, random_background(random))


def _track(random: np.random.Generator, length: int, mean: float, spread: float) -> np.ndarray:
    """Track that moves like a mouth: noise with a memory of a few frames."""
    kernel = np.hanning(6) / np.linalg.norm(np.hanning(6))
    return mean + 1.3 * spread * np.convolve(random.normal(size=length + 8), kernel, "same")[4:-4]
