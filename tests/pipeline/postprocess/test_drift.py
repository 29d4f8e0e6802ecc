"""A decoder whose colours drift from window to window, with the colours of all windows matched and without."""

import dataclasses

import pytest
import torch
from multitalk_pack.pipeline.media.pixels import to_uint8
from support import run

CAST = torch.tensor([0.03, -0.01, -0.025])  # a window's share of the drift, in RGB of -1..1


class DriftingVae:
    """Shows the portrait with the texture of a real VAE's frames on it, redder with each window that it decodes."""

    def __init__(self, vae, portrait):
        self.vae, self.portrait, self.num_decoded = vae, portrait, 0

    def encode_padded(self, known, num_frames):
        return self.vae.encode_padded(known, num_frames)

    def decode(self, latents):
        cast = self.num_decoded * CAST
        self.num_decoded += 1
        for frames in self.vae.decode(latents):
            yield (self.portrait + 0.05 * frames + cast[:, None, None, None]).clamp(-1, 1)


def lab(frames):
    """The mean colour of `c f h w` as CIE Lab, from the standard's formulas, D65."""
    rgb = (frames.double() + 1) / 2
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = torch.tensor([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).double()
    xyz = torch.einsum("dc,cfhw->dfhw", to_xyz / to_xyz.sum(1, keepdim=True), linear)
    delta = 6 / 29
    x, y, z = torch.where(xyz > delta**3, xyz.clamp(min=1e-9) ** (1 / 3), xyz / (3 * delta**2) + 4 / 29)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)]).mean(dim=(1, 2, 3))


def distance(strength):
    """Between the mean colours of the first window and of the tenth, in Lab."""
    model = run.model(num_layers=1)
    portrait = to_uint8(run.random((1, run.HEIGHT, run.WIDTH, 3), 3).mul(0.25).clamp(-0.8, 0.8))
    conditioning = dataclasses.replace(run.conditioning(model), source=portrait)
    conditioning = dataclasses.replace(conditioning, vae=DriftingVae(conditioning.vae, conditioning.source_frame(0)))
    config = run.config(steps=1, text_scale=1.0, audio_scale=1.0, color_strength=strength)
    windows = list(run.generate(model, run.audio(model, 45), conditioning, config))
    assert len(windows) == 10
    return (lab(windows[-1]) - lab(windows[0])).norm().item()


def test_matched_colours_stay_where_a_drifting_decoder_leaves_them():
    whole, half, none = (distance(strength) for strength in (1.0, 0.5, 0.0))
    assert whole <= 2 and none >= 10
    assert half == pytest.approx(none / 2, rel=0.1)
