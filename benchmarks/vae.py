"""Video VAE: encoding that stops where a grey tail repeats itself, against encoding all of it; and decoding."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from functools import partial

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from pipeline.models.vae.convolutions import OneDnnConvolutions
from pipeline.models.vae.video_vae import LATENT_MEAN, LATENT_STD, VideoVae

from .measure import Settings, Work, measure
from .report import Row, comparison_rows

NUM_FRAMES = 81
SIZES = {"smoke": (16, 17, 16), "small": (16, NUM_FRAMES, 48), "published": (96, NUM_FRAMES, 48)}  # width, frames, side
GOALS = {1: 2.5, 9: 2.0, 25: 1.4}  # by context frames


def run(settings: Settings) -> Iterator[Row]:
    """Rows of each size: encoding with 1, 9 and 25 context frames, and decoding."""
    for name in settings.sizes or ("small",):
        width, num_frames, side = SIZES[name]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoencoderKLWan(base_dim=width).eval().to(settings.device, settings.dtype)
        vae = VideoVae(deepcopy(model))
        for num_context in [count for count in GOALS if count <= num_frames]:
            frames = torch.rand(3, num_context, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
            grey = torch.zeros(3, num_frames - num_context, side, side)
            theirs = partial(_encode, model, torch.cat((frames, grey), 1))
            variants = _variants(partial(vae.encode_padded, frames, num_frames), theirs)
            case = f"encode {num_context} of {num_frames} frames, {side}x{side}, width {width}"
            yield from comparison_rows(case, measure(variants, settings), {"diffusers": GOALS[num_context]})
        latents = vae.encode_padded(frames, num_frames)
        variants = _variants(partial(vae.decode_all, latents), partial(_decode, model, latents))
        case = f"decode {num_frames} frames, {side}x{side}, width {width}"
        yield from comparison_rows(case, measure(variants, settings))


def _variants(ours: Work, diffusers: Work) -> dict[str, Work]:
    """Ours, diffusers as it comes, and diffusers with convolutions that round as ours."""

    def by_our_convolutions() -> Tensor:
        with OneDnnConvolutions():
            return diffusers()

    return {"ours": ours, "diffusers": diffusers, "diffusers, our convolutions": by_our_convolutions}


def _encode(model: AutoencoderKLWan, frames: Tensor) -> Tensor:
    """Latents by diffusers as it comes."""
    moments = model.encode(frames[None].to(model.device, model.dtype)).latent_dist.mode()[0].float().cpu()
    return (moments - _column(LATENT_MEAN)) / _column(LATENT_STD)


def _decode(model: AutoencoderKLWan, latents: Tensor) -> Tensor:
    raw = latents * _column(LATENT_STD) + _column(LATENT_MEAN)
    return model.decode(raw[None].to(model.device, model.dtype)).sample[0].float().cpu()


def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values)[:, None, None, None]
