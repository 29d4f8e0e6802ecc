"""3D convolutions of few values by oneDNN: torch leaves them to a slow loop on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class OneDnnConvolutions(TorchFunctionMode):
    """Context in which oneDNN computes every float32 3D convolution on a CPU that has it.

    By itself torch calls oneDNN only for more than 20,480 values, counted without the width (`use_mkldnn` in ATen's
    Convolution.cpp), and the small VAE stays below: 16 channels of 6 frames of 128x128 take 10 times as long by its
    loop, 64 of 32x32 twice as long (one core with AVX2). Large convolutions are not changed.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Called by torch instead of `function`."""
        if function is torch.conv3d and not kwargs and _is_onednn_possible(*args[:2]):
            return _convolve(*args)
        return function(*args, **(kwargs or {}))


def _is_onednn_possible(values: Tensor, weight: Tensor) -> bool:
    plain = values.device.type == "cpu" and values.dtype is weight.dtype is torch.float32
    return plain and torch.backends.mkldnn.is_available()


def _convolve(
    values: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    return torch.mkldnn_convolution(values, weight, bias, padding, stride, dilation, groups)
