"""Small sound and video files, made as other programs would make them, and what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.stream import Disposition
from multitalk_pack.pipeline.audio.waveform import Sound
from torch import Tensor


def hum(duration_s: float, rate_hz: int, num_channels: int) -> Sound:
    """Low tones, for each channel its own and below the reach of an LFE channel; band-limited at every rate."""
    time = torch.arange(round(duration_s * rate_hz), dtype=torch.float64) / rate_hz
    pitches = torch.arange(num_channels)[:, None] * 10 + 50.0
    swell = 0.5 - 0.5 * torch.cos(2 * torch.pi * 3 * time)
    return Sound((0.4 * swell * torch.sin(2 * torch.pi * pitches * time)).float(), rate_hz)


def sweep(duration_s: float, rate_hz: int, num_channels: int = 1) -> Sound:
    """A rising tone in bursts, the same in all channels: any shift shows in a correlation."""
    time = torch.arange(round(duration_s * rate_hz), dtype=torch.float64) / rate_hz
    tone = torch.sin(2 * torch.pi * (200 + 150 * time) * time) * (0.3 + 0.2 * torch.sin(2 * torch.pi * 3 * time))
    return Sound(tone.float().expand(num_channels, -1).contiguous(), rate_hz)


def write_sound(path: Path, sound: Sound, codec: str, layout: str, gap_s: tuple[float, float] | None = None) -> Path:
    """`sound` in a file of its own, without the packets that start in `gap_s`."""
    return write_tracks(path, [sound], codec, layout, gap_s=gap_s)


def write_tracks(
    path: Path,
    tracks: Sequence[Sound],
    codec: str,
    layout: str,
    default: int | None = None,
    gap_s: tuple[float, float] | None = None,
) -> Path:
    """Sounds in one file, one of them marked as the default."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream(codec, rate=sound.rate_hz, layout=layout) for sound in tracks]
        for index, stream in enumerate(streams if default is not None else ()):
            stream.disposition = int(Disposition.default if index == default else Disposition(0))
        for stream, sound in zip(streams, tracks, strict=True):
            _mux_sound(container, stream, sound, gap_s=gap_s)
    return path


def write_video(
    path: Path,
    num_frames: int,
    fps: int,
    sound: Sound | None = None,
    sound_start_s: float = 0,
    gap_s: tuple[float, float] | None = None,
) -> Path:
    """Grey frames of 32x16, each a little lighter, with a mono `sound` that sets in later."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=fps)
        picture.width, picture.height, picture.pix_fmt = 32, 16, "yuv420p"
        voice = container.add_stream("aac", rate=sound.rate_hz, layout="mono") if sound else None
        for number in range(num_frames):
            image = np.full((16, 32, 3), 5 * number % 256, np.uint8)
            container.mux(picture.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(picture.encode(None))
        if voice is not None:
            _mux_sound(container, voice, sound, sound_start_s, gap_s)
    return path


def damage_picture(path: Path, number: int) -> None:
    """Makes one packet of a video's picture undecodable: its H.264 units get a length that none has."""
    with av.open(str(path)) as container:
        positions = sorted(packet.pos for packet in container.demux(video=0) if packet.size)
    with path.open("r+b") as file:
        file.seek(positions[number])
        file.write(b"\xff\xff\xff\xff")


def _mux_sound(container, stream, sound: Sound, start_s: float = 0, gap_s: tuple[float, float] | None = None) -> None:
    interleaved = sound.samples.T.contiguous().numpy().reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(interleaved, "flt", layout=stream.layout.name)
    frame.sample_rate, frame.time_base = sound.rate_hz, Fraction(1, sound.rate_hz)
    frame.pts = round(start_s * sound.rate_hz)
    for packet in (*stream.encode(frame), *stream.encode(None)):
        if gap_s is None or not gap_s[0] <= packet.pts * packet.time_base < gap_s[1]:
            container.mux(packet)


def correlation(a: Tensor, b: Tensor) -> float:
    """The correlation of two signals of any shape, over the shorter one's length; 0 for silence."""
    a, b = a.flatten().double(), b.flatten().double()
    length = min(len(a), len(b))
    return float(torch.corrcoef(torch.stack([a[:length], b[:length]])).nan_to_num()[0, 1])


def lag(late: Tensor, early: Tensor) -> int:
    """Samples `n` by which one sound follows the other, at the height of their correlation."""
    length = 2 ** (len(late) + len(early)).bit_length()
    spectrum = torch.fft.rfft(late.double(), length) * torch.fft.rfft(early.double(), length).conj()
    shift = int(torch.fft.irfft(spectrum, length).argmax())
    return shift if shift < length // 2 else shift - length
