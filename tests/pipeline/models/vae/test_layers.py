"""Layers of the VAE beside those of diffusers: the same bits in float32, as near to the truth in bfloat16."""

from copy import deepcopy

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanRMS_norm, WanUpsample
from multitalk_pack.pipeline.models.vae.convolutions import OneDnnConvolutions
from multitalk_pack.pipeline.models.vae.layers import REPLACEMENTS, streamline


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def pair(layer):
    """A layer of diffusers with random weights, and ours with the same."""
    for parameter in layer.parameters():
        parameter.normal_()
    ours = deepcopy(layer)
    streamline(ours)
    assert type(ours) is REPLACEMENTS[type(layer)]
    return layer, ours


@pytest.mark.parametrize("num_cached", [0, 1, 2])
@pytest.mark.parametrize(("channels", "side"), [(4, 128), (16, 30), (96, 9)])
def test_a_convolution_is_the_same_whatever_came_before(channels, side, num_cached):
    theirs, ours = pair(WanCausalConv3d(channels, 8, 3, padding=1))
    frames, cache = torch.randn(1, channels, 4, side, side + 2), torch.randn(1, channels, 2, side, side + 2)
    past = cache[:, :, :num_cached] if num_cached else None
    with OneDnnConvolutions():
        assert torch.equal(ours(frames, past), theirs(frames, past))


@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), ((3, 1, 1), (1, 0, 0)), ((3, 1, 1), 0)])
def test_a_convolution_over_time_alone_is_the_same(kernel, padding):
    theirs, ours = pair(WanCausalConv3d(6, 8, kernel, padding=padding))
    frames = torch.randn(1, 6, 4, 9, 11)
    with OneDnnConvolutions():
        assert torch.equal(ours(frames), theirs(frames))


@pytest.mark.parametrize("shape", [(1, 24, 3, 6, 8), (2, 24, 6, 8)])
def test_a_norm_is_the_same_in_float32_and_no_further_from_the_truth_in_bfloat16(shape):
    theirs, ours = pair(WanRMS_norm(24, images=len(shape) == 4))
    values = torch.randn(shape) * 5
    values[..., 0] = 0
    assert torch.equal(ours(values), theirs(values))
    theirs, ours, values = theirs.bfloat16(), ours.bfloat16(), values.bfloat16()
    exact = deepcopy(theirs).double()(values.double())
    assert (ours(values) - exact).norm() <= (theirs(values) - exact).norm()
    assert not ours(values)[..., 0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_upsampling_is_the_same(dtype):
    theirs, ours = pair(WanUpsample(scale_factor=(2.0, 2.0), mode="nearest-exact"))
    values = torch.randn(2, 5, 6, 7, dtype=dtype)
    assert torch.equal(ours(values), theirs(values)) and ours(values).dtype is dtype
