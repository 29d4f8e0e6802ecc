"""Wan's video VAE, streamed over time: frames go in and come out a chunk at a time in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor, nn

from ...errors import ConfigError
from ...shapes import LATENT_CHANNELS, VAE_STRIDE_SPACE, VAE_STRIDE_TIME, num_latent_frames
from .convolutions import OneDnnConvolutions
from .layers import streamline
from .tiling import Tiling, blend, split_tiles

LATENT_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
               0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)  # fmt: skip
LATENT_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
              3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)  # fmt: skip

CACHE_FRAMES = 2  # before a chunk, for a causal convolution of three

FeatureCache = list[Any]
"""The last input frames of each convolution, or None; diffusers' upsamplers put a word before their first frame."""

Layer = Callable[[Tensor, FeatureCache], Tensor]


class VideoCoder(Protocol):
    """An autoencoder of frames (`c f h w`, -1..1) and normalised latents (`c t h w`)."""

    @property
    def model(self) -> nn.Module:
        """Its network, for the fingerprint of a run."""
        ...

    def encode(self, frames: Tensor) -> Tensor:
        """Frames, 4n+1 of them, to latents."""
        ...

    def encode_padded(self, frames: Tensor, num_frames: int) -> Tensor:
        """The latents of `frames` followed by mid-grey, `num_frames` in all."""
        ...

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """Latents to frames, a few at a time."""
        ...


class VideoVae:
    """Wan2.1's VAE. Its results are float32 and on the CPU, wherever it runs.

    Args:
        model: the network, whose layers are replaced by faster ones; moved around by its owner.
        tiling: works on overlapping tiles, for less memory; None on whole frames.
    """

    def __init__(self, model: AutoencoderKLWan, tiling: Tiling | None = None):
        streamline(model)
        self.model = model
        self.tiling = tiling

    def encode(self, frames: Tensor) -> Tensor:
        """The latents `c t h w` of `frames` (`c f h w`, -1..1, f = 4n+1): the distribution's mean, normalised."""
        return self.encode_padded(frames, frames.shape[1])

    @torch.no_grad()
    def encode_padded(self, frames: Tensor, num_frames: int) -> Tensor:
        """The latents of `frames` (`c f h w`, -1..1) followed by mid-grey, `num_frames` = 4n+1 in all.

        Bit for bit the encoding of all of them; but along the grey tail each layer is run only until it repeats
        itself: 2.6, 2.0 and 1.6 times as fast for 1, 9 and 25 frames of 81 (measured on a CPU).
        """
        _check_frames(frames, num_frames)
        if self.tiling is None:
            return self._encode_whole(frames, num_frames)
        tiles = split_tiles(frames.shape[-2] // VAE_STRIDE_SPACE, frames.shape[-1] // VAE_STRIDE_SPACE, self.tiling)
        latents = [self._encode_whole(tile.cut(frames, VAE_STRIDE_SPACE), num_frames) for tile in tiles]
        return blend(latents, tiles, self.tiling)

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

    def _encode_whole(self, frames: Tensor, num_frames: int) -> Tensor:
        encoder = StreamingEncoder(_encoder_layers(self.model.encoder))
        with OneDnnConvolutions():
            moments = [encoder(self._batch(chunk)) for chunk in _frame_chunks(frames)]
            if len(moments) < num_latent_frames(num_frames):
                grey = frames.new_zeros(frames.shape[0], VAE_STRIDE_TIME, *frames.shape[2:])
                moments.append(encoder(self._batch(grey)))
            while len(moments) < num_latent_frames(num_frames):
                moments.append(encoder.repeat())
            mean = self.model.quant_conv(torch.cat(moments, dim=2))[0, :LATENT_CHANNELS].float().cpu()
        return (mean - _column(LATENT_MEAN)) / _column(LATENT_STD)

    def _decode_whole(self, latents: Tensor) -> Iterator[Tensor]:
        moments = self._moments(latents)
        cache = _empty_cache(self.model.decoder)
        for index, moment in enumerate(moments.split(1, dim=2)):
            with torch.no_grad(), OneDnnConvolutions():  # not held across a yield
                frames = self.model.decoder(moment, feat_cache=cache, feat_idx=[0], first_chunk=index == 0)
                frames = frames[0].clamp(-1, 1).float().cpu()
            yield frames

    @torch.no_grad()
    def _moments(self, latents: Tensor) -> Tensor:
        """The decoder's input, `1 c t h w`; all at once, as one by one would round differently."""
        raw = latents.float().cpu() * _column(LATENT_STD) + _column(LATENT_MEAN)
        with OneDnnConvolutions():
            return self.model.post_quant_conv(self._batch(raw))

    def _batch(self, x: Tensor) -> Tensor:
        """`1 c f h w` of `c f h w` for the network; channels last on cards, whose convolutions in 16 bits are so."""
        layout = torch.channels_last_3d if self.model.device.type == "cuda" else torch.preserve_format
        return x[None].to(self.model.device, self.model.dtype, memory_format=layout)

    def _decode_tiles(self, latents: Tensor, tiling: Tiling) -> Iterator[Tensor]:
        tiles = split_tiles(latents.shape[-2], latents.shape[-1], tiling)
        videos = [list(self._decode_whole(tile.cut(latents))) for tile in tiles]
        for chunks in zip(*videos, strict=True):
            yield blend(chunks, tiles, tiling, VAE_STRIDE_SPACE)


class StreamingEncoder:
    """Causal layers that take a video chunk by chunk; each caches the features that its next chunk needs.

    A layer is a function of its chunk and its cache. So a layer that is given the same chunk again, and whose cache
    that chunk left as it was, has the same output for ever: `repeat` runs only the layers above the last one of these.

    Args:
        layers: from the frames upwards.
    """

    def __init__(self, layers: Sequence[tuple[Layer, FeatureCache]]):
        self._layers = layers
        self._num_steady = 0
        self._steady_output = torch.empty(0)  # of the last steady layer, or the chunk itself

    def __call__(self, chunk: Tensor) -> Tensor:
        """The output for the next chunk, `b c f h w`."""
        self._num_steady, self._steady_output = 0, chunk
        for layer, cache in self._layers:
            chunk = layer(chunk, cache)
        return chunk

    def repeat(self) -> Tensor:
        """The output for the chunk of the last call, once more."""
        chunk = self._steady_output
        for index in range(self._num_steady, len(self._layers)):
            layer, cache = self._layers[index]
            before = list(cache) if index == self._num_steady else None  # all below it are steady
            chunk = layer(chunk, cache)
            if before is not None and _is_same(before, cache):
                self._num_steady, self._steady_output = index + 1, chunk
        return chunk


def _encoder_layers(encoder: Any) -> list[tuple[Layer, FeatureCache]]:
    """The encoder's layers, with their empty caches. What stands between two convolutions goes with the second."""

    def first(chunk: Tensor, cache: FeatureCache) -> Tensor:
        return _convolve(encoder.conv_in, chunk, cache)

    def last(chunk: Tensor, cache: FeatureCache) -> Tensor:
        return _convolve(encoder.conv_out, encoder.nonlinearity(encoder.norm_out(chunk)), cache)

    blocks = [*encoder.down_blocks, encoder.mid_block]
    middle = [(_layer(block), _empty_cache(block)) for block in blocks]
    return [(first, [None]), *middle, (last, [None])]


def _layer(block: nn.Module) -> Layer:
    return lambda chunk, cache: block(chunk, feat_cache=cache, feat_idx=[0])


def _convolve(conv: nn.Module, chunk: Tensor, cache: FeatureCache) -> Tensor:
    """A causal convolution of `chunk`, which goes on from the frames in `cache`."""
    past = cache[0]
    frames = chunk if past is None else torch.cat((past, chunk), dim=2)
    cache[0] = frames[:, :, -CACHE_FRAMES:].clone()
    return conv(chunk, past)


def _empty_cache(module: nn.Module) -> FeatureCache:
    return [None for part in module.modules() if isinstance(part, nn.Conv3d)]


def _is_same(before: FeatureCache, after: FeatureCache) -> bool:
    """True where two caches hold the same bits; an entry that no convolution uses stays None."""
    return all(a is b or torch.equal(a, b) for a, b in zip(before, after, strict=True))


def _frame_chunks(frames: Tensor) -> Iterable[Tensor]:
    """The first frame, then four at a time; the last four are filled up with mid-grey, which is 0."""
    yield frames[:, :1]
    for start in range(1, frames.shape[1], VAE_STRIDE_TIME):
        chunk = frames[:, start : start + VAE_STRIDE_TIME]
        missing = VAE_STRIDE_TIME - chunk.shape[1]
        yield nn.functional.pad(chunk, (0, 0, 0, 0, 0, missing)) if missing else chunk


def _check_frames(frames: Tensor, num_frames: int) -> None:
    if frames.ndim != 4 or frames.shape[0] != 3 or not 1 <= frames.shape[1] <= num_frames:
        raise ConfigError(f"Frames must be 3 f h w with 1 to {num_frames} frames, got the shape {tuple(frames.shape)}.")
    if frames.shape[2] % VAE_STRIDE_SPACE or frames.shape[3] % VAE_STRIDE_SPACE:
        raise ConfigError(f"Frames must have sides in multiples of {VAE_STRIDE_SPACE}, got {tuple(frames.shape[2:])}.")
    if num_frames % VAE_STRIDE_TIME != 1:
        raise ConfigError(f"A window's frames must be 4n+1, got {num_frames}.")


def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values)[:, None, None, None]
