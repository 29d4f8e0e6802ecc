"""Previews of latents show the frame that the VAE would make of them, whatever VAE it is."""

import numpy as np
import pytest
import torch
from multitalk_pack.pipeline.conditioning.reference_image import fit
from multitalk_pack.pipeline.generation.preview import FramePreview, LatentPreview
from multitalk_pack.pipeline.media.picture import read_image
from multitalk_pack.pipeline.media.pixels import from_uint8
from multitalk_pack.pipeline.model_files import ModelFiles
from multitalk_pack.pipeline.shapes import LATENT_CHANNELS
from multitalk_pack.pipeline.weights import handles
from support.pack import PACK
from torch.nn.functional import interpolate

from demo.faces import draw, random_appearance, random_background, random_motion


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rms_levels(picture, frame):
    enlarged = interpolate(picture[None], frame.shape[1:], mode="bilinear")[0]
    return (enlarged - frame).pow(2).mean().sqrt().item() * 127.5


@pytest.mark.parametrize("seed", range(3))
def test_colours_that_are_linear_in_the_latents_are_recovered(seed):
    mix = random(3, LATENT_CHANNELS, seed=seed) / 20
    reference, latents = random(LATENT_CHANNELS, 20, 30, seed=seed + 10), random(LATENT_CHANNELS, 5, 20, 30, seed=seed)
    pixels = torch.einsum("rc,chw->rhw", mix, reference).repeat_interleave(8, 1).repeat_interleave(8, 2)
    picture = LatentPreview(latents, reference, pixels + 0.1).pictures()[0]
    expected = (torch.einsum("rc,chw->rhw", mix, latents[:, 2]) + 0.1).clamp(-1, 1)
    assert (picture - expected).abs().max() < 0.05  # what the ridge takes


@pytest.mark.parametrize("name", ["drawn_portrait.png", "portrait.jpg"])
def test_the_bundled_vae_is_previewed_as_well_as_so_few_pixels_can(name):
    vae = handles.vae(ModelFiles.bundled().vae, torch.device("cpu")).model
    reference, other = (
        fit(read_image(PACK / "demo" / "assets" / file), (128, 192)) for file in (name, "drawn_two.png")
    )
    latents = vae.encode(reference[:, None])
    few_pixels = interpolate(reference[None], latents.shape[2:], mode="area")[0]
    picture = LatentPreview(latents, latents[:, 0], reference).pictures()[0]
    assert rms_levels(picture, reference) < rms_levels(few_pixels, reference) + 3
    noise = LatentPreview(random(*latents.shape), latents[:, 0], reference).pictures()[0]
    assert noise.std() < 2 * reference.std()
    unseen = LatentPreview(vae.encode(other[:, None]), latents[:, 0], reference).pictures()[0]
    assert rms_levels(unseen, other) < 64  # the error of factors that were fitted to another VAE


def test_the_last_steps_picture_is_near_the_frame_that_the_bundled_vae_decodes():
    vae = handles.vae(ModelFiles.bundled().vae, torch.device("cpu")).model
    chance = np.random.default_rng(3)
    opening = np.sin(np.arange(9)) ** 2
    person = random_appearance(chance), random_motion(chance, opening, 0 * opening, 1, 1)
    levels = draw([person], random_background(chance))  # f h w c
    frames = from_uint8(torch.from_numpy(levels)).permute(3, 0, 1, 2)
    latents = vae.encode(frames)
    decoded = vae.decode_all(latents)
    picture = LatentPreview(latents, vae.encode(frames[:, :1])[:, 0], frames[:, 0]).pictures()[0]
    assert rms_levels(picture, decoded[:, 3]) < 25  # of 255; of frames 1 to 4, which the middle latent frame holds


@pytest.mark.parametrize("seed", range(3))
def test_any_vae_is_previewed_nearly_as_well_as_a_linear_map_can(seed):
    latents = random(LATENT_CHANNELS, 20, 30, seed=seed)
    hidden = torch.tanh(torch.einsum("dc,chw->dhw", random(32, LATENT_CHANNELS, seed=seed + 10), latents))
    colors = torch.einsum("rd,dhw->rhw", random(3, 32, seed=seed + 20) / 20, hidden)
    pixels = colors.repeat_interleave(8, 1).repeat_interleave(8, 2)
    picture = LatentPreview(latents[:, None], latents, pixels).pictures()[0]
    rows = torch.cat([latents.flatten(1), torch.ones(1, 600)]).T
    optimum = (rows @ torch.linalg.lstsq(rows, colors.flatten(1).T).solution).T.reshape(colors.shape)
    assert (picture - colors).pow(2).mean() ** 0.5 <= 1.1 * (optimum - colors).pow(2).mean() ** 0.5


def test_a_flat_reference_gives_a_flat_picture():
    picture = LatentPreview(torch.zeros(16, 3, 4, 4), torch.zeros(16, 4, 4), torch.full((3, 32, 32), 0.5)).pictures()[0]
    assert torch.allclose(picture, torch.full((3, 4, 4), 0.5), atol=0.01)


def test_finished_frames_are_shown_as_they_follow_each_other():
    frames = random(3, 5, 8, 12)
    assert torch.equal(FramePreview(frames).pictures(), frames.transpose(0, 1))
