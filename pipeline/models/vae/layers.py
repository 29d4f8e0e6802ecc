"""Layers of diffusers' Wan VAE with fewer passes over their values: the same numbers in float32, to the bit."""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanRMS_norm, WanUpsample
from torch import Tensor, nn
from torch.nn.functional import pad, rms_norm

LEAST_SQUARE = 1e-24  # of the mean: below it values are taken for zeros


class CausalConvolution(WanCausalConv3d):
    """Causal convolution that leaves the padding of rows and columns to its kernel and copies past frames alone."""

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        """`b c f h w` of `b c f h w`, which goes on from the frames in `cache_x` and from zeros before those."""
        columns, _, rows, _, num_past, _ = map(int, self._padding)
        if num_past and cache_x is not None:
            x = torch.cat((cache_x, x), dim=2)
            num_past -= cache_x.shape[2]
        if num_past:
            x = pad(x, (0, 0, 0, 0, num_past, 0))
        return torch.conv3d(x, self.weight, self.bias, self.stride, (0, rows, columns), self.dilation, self.groups)


class ChannelNorm(WanRMS_norm):
    """RMS norm over the channels, in 16 bits by the fused kernel, which computes in float32 and rounds once."""

    def forward(self, x: Tensor) -> Tensor:
        """`g x / sqrt(mean_c x^2)` of `b c ...`; fastest where the channels are innermost, as they are on cards."""
        if x.dtype is torch.float32:
            return super().forward(x)
        channels = len(self.gamma)
        return rms_norm(x.movedim(1, -1), (channels,), self.gamma.flatten(), LEAST_SQUARE).movedim(-1, 1)


class Upsampling(WanUpsample):
    """Upsampling that copies the nearest value as it is, without a way through float32."""

    def forward(self, x: Tensor) -> Tensor:
        """`b c 2h 2w` of `b c h w`; channels last on cards, where the frames that were put between others are not."""
        if x.is_cuda:
            x = x.contiguous(memory_format=torch.channels_last)
        return nn.Upsample.forward(self, x)


REPLACEMENTS = {WanCausalConv3d: CausalConvolution, WanRMS_norm: ChannelNorm, WanUpsample: Upsampling}


def streamline(network: nn.Module) -> None:
    """Gives the layers of `network` the classes above; its weights and their names stay."""
    for layer in network.modules():
        layer.__class__ = REPLACEMENTS.get(type(layer), type(layer))
        if isinstance(layer, nn.SiLU):
            layer.inplace = True  # it follows a norm, whose output nobody else reads
