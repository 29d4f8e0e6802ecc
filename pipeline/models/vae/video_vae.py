"""Wan's video VAE, streamed over time: frames go in and come out a chunk at a time, memory stays the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from ...errors import ConfigError
from ...shapes import LATENT_CHANNELS, VAE_STRIDE_SPACE, VAE_STRIDE_TIME, num_latent_frames
from .convolutions import OneDnnConvolutions
from .tiling import Tiling, blend, tiles

LATENT_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
               0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)  # fmt: skip
LATENT_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
              3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)  # fmt: skip

TAIL = 2  # frames that a causal convolution of three remembers

Memory = list[Tensor | str | None]  # one place for each convolution; an upsampler leaves a word before its first frame
Layer = Callable[[Tensor, Memory], Tensor]


class VideoCoder(Protocol):
    """Whatever turns frames (`c f h w`, -1..1) into normalised latents (`c t h w`) and back."""

    @property
    def model(self) -> nn.Module:
        """Its network, which tells it from others."""

    def encode(self, frames: Tensor) -> Tensor:
        """Frames, 4n+1 of them, to latents."""

    def encode_padded(self, known: Tensor, num_frames: int) -> Tensor:
        """The latents of `known` frames followed by mid-grey, `num_frames` in all."""

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """Latents to frames, a few at a time."""


class VideoVae:
    """Wan2.1's VAE. What it gives is float32 and on the CPU, wherever it runs.

    Args:
        model: the network; moved around by its owner.
        tiling: works on overlapping tiles, for less memory; None on whole frames.
    """

    def __init__(self, model: AutoencoderKLWan, tiling: Tiling | None = None):
        self.model = model
        self.tiling = tiling

    def encode(self, frames: Tensor) -> Tensor:
        """The latents `c t h w` of `frames` (`c f h w`, -1..1, f = 4n+1): the distribution's mean, normalised."""
        return self.encode_padded(frames, frames.shape[1])

    @torch.no_grad()
    def encode_padded(self, known: Tensor, num_frames: int) -> Tensor:
        """The latents of `known` (`c k h w`, -1..1) followed by mid-grey, `num_frames` = 4n+1 in all.

        Bit for bit what encoding all of them gives; but along the grey tail each layer is run only until it repeats
        itself: 2.6, 2.0 and 1.6 times as fast for 1, 9 and 25 known frames of 81 (measured on a CPU).
        """
        _check_frames(known, num_frames)
        if self.tiling is None:
            return self._encode_whole(known, num_frames)
        places = tiles(known.shape[-2] // VAE_STRIDE_SPACE, known.shape[-1] // VAE_STRIDE_SPACE, self.tiling)
        coded = [self._encode_whole(place.cut(known, VAE_STRIDE_SPACE), num_frames) for place in places]
        return blend(coded, places, self.tiling)

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """The frames of normalised `latents` (`c t h w`), in -1..1: first one, then four for each latent frame.

        With tiling the frames come once all tiles are decoded, and are held on the CPU until then.
        """
        if latents.ndim != 4 or latents.shape[0] != LATENT_CHANNELS or not latents.shape[1]:
            raise ConfigError(f"Latents must be {LATENT_CHANNELS} t h w, got the shape {tuple(latents.shape)}.")
        if self.tiling is None:
            return self._decode_whole(latents)
        return self._decode_tiles(latents, self.tiling)

    def decode_all(self, latents: Tensor) -> Tensor:
        """All frames of `latents` (`c t h w`) as one tensor `c f h w`, -1..1."""
        return torch.cat(list(self.decode(latents)), dim=1)

    def _encode_whole(self, known: Tensor, num_frames: int) -> Tensor:
        walk = CausalWalk(_encoder_layers(self.model.encoder))
        with OneDnnConvolutions():
            moments = [walk(chunk.to(self.model.device, self.model.dtype)[None]) for chunk in _known_chunks(known)]
            if len(moments) < num_latent_frames(num_frames):
                grey = known.new_zeros(known.shape[0], VAE_STRIDE_TIME, *known.shape[2:])
                moments.append(walk(grey.to(self.model.device, self.model.dtype)[None]))
            while len(moments) < num_latent_frames(num_frames):
                moments.append(walk.again())
            mean = self.model.quant_conv(torch.cat(moments, dim=2))[0, :LATENT_CHANNELS].float().cpu()
        return (mean - _column(LATENT_MEAN)) / _column(LATENT_STD)

    def _decode_whole(self, latents: Tensor) -> Iterator[Tensor]:
        moments = self._moments(latents)
        memory = _empty_memory(self.model.decoder)
        for index, moment in enumerate(moments.split(1, dim=2)):
            with torch.no_grad(), OneDnnConvolutions():  # not held across a yield
                frames = self.model.decoder(moment, feat_cache=memory, feat_idx=[0], first_chunk=index == 0)
                frames = frames[0].clamp(-1, 1).float().cpu()
            yield frames

    @torch.no_grad()
    def _moments(self, latents: Tensor) -> Tensor:
        """What the decoder takes, `1 c t h w`; all at once, as one by one would round differently."""
        raw = latents.float().cpu() * _column(LATENT_STD) + _column(LATENT_MEAN)
        with OneDnnConvolutions():
            return self.model.post_quant_conv(raw[None].to(self.model.device, self.model.dtype))

    def _decode_tiles(self, latents: Tensor, tiling: Tiling) -> Iterator[Tensor]:
        places = tiles(*latents.shape[-2:], tiling)
        decoded = [list(self._decode_whole(place.cut(latents))) for place in places]
        for parts in zip(*decoded, strict=True):
            yield blend(parts, places, tiling, VAE_STRIDE_SPACE)


class CausalWalk:
    """Sends chunks of frames, one after the other, through causal layers; each layer remembers what it needs.

    A layer is a function of its chunk and its memory. So a layer that is given the same chunk again, and whose memory
    that chunk left as it was, will answer the same for ever: `again` runs only the layers above the last one of these.

    Args:
        layers: from the frames upwards.
    """

    def __init__(self, layers: Sequence[tuple[Layer, Memory]]):
        self._layers = layers
        self._num_settled = 0
        self._answer: Tensor | None = None  # of the last layer that has settled, or the chunk itself

    def __call__(self, chunk: Tensor) -> Tensor:
        """The layers' answer to the next chunk, `b c f h w`."""
        self._num_settled, self._answer = 0, chunk
        for layer, memory in self._layers:
            chunk = layer(chunk, memory)
        return chunk

    def again(self) -> Tensor:
        """The layers' answer to the chunk that was given last, once more."""
        chunk = self._answer
        for index in range(self._num_settled, len(self._layers)):
            layer, memory = self._layers[index]
            before = list(memory) if index == self._num_settled else None  # all below it have settled
            chunk = layer(chunk, memory)
            if before is not None and _same(before, memory):
                self._num_settled, self._answer = index + 1, chunk
        return chunk


def _encoder_layers(encoder: nn.Module) -> list[tuple[Layer, Memory]]:
    """The encoder's layers, with their empty memories. What stands between two convolutions goes with the second."""

    def first(chunk: Tensor, memory: Memory) -> Tensor:
        return _convolve(encoder.conv_in, chunk, memory)

    def last(chunk: Tensor, memory: Memory) -> Tensor:
        return _convolve(encoder.conv_out, encoder.nonlinearity(encoder.norm_out(chunk)), memory)

    blocks = [*encoder.down_blocks, encoder.mid_block]
    middle = [(_run(block), _empty_memory(block)) for block in blocks]
    return [(first, [None]), *middle, (last, [None])]


def _run(block: nn.Module) -> Layer:
    return lambda chunk, memory: block(chunk, feat_cache=memory, feat_idx=[0])


def _convolve(conv: nn.Module, chunk: Tensor, memory: Memory) -> Tensor:
    """A causal convolution of `chunk`, which goes on from the frames in `memory`."""
    past = memory[0]
    seen = chunk if past is None else torch.cat((past, chunk), dim=2)
    memory[0] = seen[:, :, -TAIL:].clone()
    return conv(chunk, past)


def _empty_memory(module: nn.Module) -> Memory:
    return [None for part in module.modules() if isinstance(part, nn.Conv3d)]


def _same(before: Memory, after: Memory) -> bool:
    """Whether two memories hold the same bits; a place that no convolution uses stays None."""
    return all(a is b or torch.equal(a, b) for a, b in zip(before, after, strict=True))


def _known_chunks(known: Tensor) -> Iterable[Tensor]:
    """The first frame, then four at a time; the last four are filled up with mid-grey, which is 0."""
    yield known[:, :1]
    for start in range(1, known.shape[1], VAE_STRIDE_TIME):
        chunk = known[:, start : start + VAE_STRIDE_TIME]
        missing = VAE_STRIDE_TIME - chunk.shape[1]
        yield nn.functional.pad(chunk, (0, 0, 0, 0, 0, missing)) if missing else chunk


def _check_frames(known: Tensor, num_frames: int) -> None:
    if known.ndim != 4 or known.shape[0] != 3 or not 1 <= known.shape[1] <= num_frames:
        raise ConfigError(f"Frames must be 3 f h w with 1 to {num_frames} frames, got the shape {tuple(known.shape)}.")
    if known.shape[2] % VAE_STRIDE_SPACE or known.shape[3] % VAE_STRIDE_SPACE:
        raise ConfigError(f"Frames must have sides in multiples of {VAE_STRIDE_SPACE}, got {tuple(known.shape[2:])}.")
    if num_frames % VAE_STRIDE_TIME != 1:
        raise ConfigError(f"A window's frames must be 4n+1, got {num_frames}.")


def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values)[:, None, None, None]
