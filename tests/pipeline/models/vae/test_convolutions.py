"""Small 3D convolutions by oneDNN, and their results."""

import pytest
import torch
from multitalk_pack.pipeline.models.vae.convolutions import OneDnnConvolutions
from torch import nn
from torch.profiler import profile


def operations(call):
    """Names of the operations that a call is made of."""
    with profile() as trace:
        call()
    return {event.key for event in trace.key_averages()}


@pytest.mark.parametrize(
    "options",
    [{}, {"padding": 1}, {"stride": (2, 1, 2)}, {"dilation": 2}, {"groups": 2}, {"bias": False}],
    ids=str,
)
@torch.no_grad()
def test_results_are_those_of_the_convolution_itself(options):
    convolution = nn.Conv3d(4, 6, 3, **options)
    values = torch.randn(1, 4, 6, 9, 11)
    exact = nn.Conv3d(4, 6, 3, **options).double()
    exact.load_state_dict(convolution.state_dict())
    with OneDnnConvolutions():
        assert torch.allclose(convolution(values).double(), exact(values.double()), atol=1e-6)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_a_small_convolution_is_not_left_to_the_slow_loop():
    convolution, values = nn.Conv3d(4, 6, 3), torch.randn(1, 4, 6, 9, 11)
    with OneDnnConvolutions():
        assert "aten::mkldnn_convolution" in operations(lambda: convolution(values))


def test_other_numbers_and_other_functions_are_left_alone():
    convolution, values = nn.Conv3d(4, 6, 3).double(), torch.randn(1, 4, 6, 9, 11).double()
    plain, other = convolution(values), nn.functional.silu(values)
    with OneDnnConvolutions():
        assert torch.equal(convolution(values), plain)
        assert torch.equal(nn.functional.silu(values), other)
