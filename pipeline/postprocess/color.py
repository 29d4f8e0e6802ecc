"""Colour transfer from the reference image to a window, against the drift of long videos (Reinhard et al. 2001)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, pad

SKIMAGE_DIGITS, FLASHTALK_DIGITS = 6, 7
# sRGB with its white point D65 at 2 degrees, by its digits: as in scikit-image, which MultiTalk takes, and in FlashTalk
XYZ_FROM_RGB = {
    SKIMAGE_DIGITS: torch.tensor(
        [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
    ),
    FLASHTALK_DIGITS: torch.tensor(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    ),
}
WHITE = torch.tensor([0.95047, 1.0, 1.08883])
FLAT = 1e-3  # a standard deviation in Lab units, on a scale of 100, that is rounding noise
CHUNK_FRAMES = 8

Statistics = tuple[Tensor, Tensor]
"""Mean and population standard deviation of each channel of each frame, both `c f 1 1`."""


def match_colors(
    frames: Tensor,
    reference: Tensor,
    strength: float,
    smoothing: int = 1,
    digits: int = SKIMAGE_DIGITS,
    device: torch.device | None = None,
) -> Tensor:
    """`frames` with the colours of `reference`: each frame takes the mean and the spread of its Lab channels.

    A mouth that opens darkens its frame, and matching that frame alone brightens all the rest of it. So mean and spread
    may be averaged over neighbouring frames: drift is slower than mouths.

    Args:
        frames: `c f h w`, RGB in -1..1.
        reference: `c h w`, RGB in -1..1.
        strength: 0 (frames as they are) .. 1 (matched); between, a blend in RGB.
        smoothing: number of frames, odd, that mean and spread are averaged over; 1 matches each frame by itself, as
            published.
        digits: of the sRGB matrix, see `XYZ_FROM_RGB`.
        device: that computes, on `CHUNK_FRAMES` frames at a time; None takes the frames' own.
    """
    if strength == 0:
        return frames
    home, device, matrix = frames.device, device or frames.device, XYZ_FROM_RGB[digits] / WHITE[:, None]
    target = _statistics(_to_lab(_to_unit(reference[:, None].to(device, frames.dtype)), matrix))
    chunks, labs, statistics = frames.split(CHUNK_FRAMES, dim=1), [], []
    for chunk in chunks:
        lab = _to_lab(_to_unit(chunk.to(device)), matrix)
        statistics.append(_statistics(lab))
        labs.append(lab.to(home))
    mean, spread = (_smooth(torch.cat(parts, dim=1), smoothing) for parts in zip(*statistics, strict=True))
    sources = zip(mean.split(CHUNK_FRAMES, dim=1), spread.split(CHUNK_FRAMES, dim=1), strict=True)
    matched = []
    for chunk, lab, source in zip(chunks, labs, sources, strict=True):
        rgb = _match(lab.to(device), source, target, matrix)
        matched.append(_blend(chunk.to(device), rgb, strength).to(home))
    return torch.cat(matched, dim=1)


def _match(lab: Tensor, source: Statistics, target: Statistics, matrix: Tensor) -> Tensor:
    """RGB in 0..1 of `lab` with its statistics `source` moved to `target`."""
    (mean, spread), (target_mean, target_spread) = source, target
    scale = torch.where(spread > FLAT, target_spread / spread.clamp(min=FLAT), 0)  # a flat frame takes the mean
    return _to_rgb((lab - mean) * scale + target_mean, matrix)


def _blend(frames: Tensor, matched: Tensor, strength: float) -> Tensor:
    return torch.lerp(_to_unit(frames), matched, strength) * 2 - 1


def _statistics(lab: Tensor) -> Statistics:
    return lab.mean(dim=(2, 3), keepdim=True), lab.std(dim=(2, 3), keepdim=True, correction=0)


def _smooth(statistic: Tensor, count: int) -> Tensor:
    """Moving average of `c f 1 1` over `count` frames; the first and the last frame are repeated at the ends."""
    padded = pad(statistic[..., 0, 0], (count // 2, count // 2), mode="replicate")
    return avg_pool1d(padded, count, stride=1)[..., None, None]


def _to_unit(frames: Tensor) -> Tensor:
    return ((frames + 1) / 2).clamp(0, 1)


def _to_lab(rgb: Tensor, matrix: Tensor) -> Tensor:
    """CIE Lab, `c f h w`, from RGB in 0..1; `matrix` leads to XYZ over white."""
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = _mix(matrix, linear)
    x, y, z = torch.where(xyz > 0.008856, xyz.clamp(min=0.008856) ** (1 / 3), 7.787 * xyz + 16 / 116)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _to_rgb(lab: Tensor, matrix: Tensor) -> Tensor:
    """RGB clipped to 0..1, from CIE Lab."""
    y = (lab[0] + 16) / 116
    x, z = y + lab[1] / 500, (y - lab[2] / 200).clamp(min=0)
    roots = torch.stack([x, y, z])
    xyz = torch.where(roots > 0.2068966, roots**3, (roots - 16 / 116) / 7.787)
    linear = _mix(matrix.inverse(), xyz)
    curved = 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear > 0.0031308, curved, 12.92 * linear).clamp(0, 1)


def _mix(matrix: Tensor, channels: Tensor) -> Tensor:
    return torch.einsum("dc,cfhw->dfhw", matrix.to(channels), channels)
