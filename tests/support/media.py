"""Small sound and video files, made as other programs would make them."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from multitalk_pack.pipeline.audio.waveform import Sound


def hum(duration_s: float, rate_hz: int, num_channels: int) -> Sound:
    """Low tones, for each channel its own and below the reach of an LFE channel; band-limited at every rate."""
    time = torch.arange(round(duration_s * rate_hz), dtype=torch.float64) / rate_hz
    pitches = torch.arange(num_channels)[:, None] * 10 + 50.0
    swell = 0.5 - 0.5 * torch.cos(2 * torch.pi * 3 * time)
    return Sound((0.4 * swell * torch.sin(2 * torch.pi * pitches * time)).float(), rate_hz)


def write_sound(path: Path, sound: Sound, codec: str, layout: str) -> Path:
    """`sound` in a file of its own."""
    with av.open(str(path), "w") as container:
        _mux_sound(container, container.add_stream(codec, rate=sound.rate_hz, layout=layout), sound)
    return path


def write_video(path: Path, num_frames: int, fps: int, sound: Sound | None = None, sound_start_s: float = 0) -> Path:
    """Grey frames of 32x16, each a little lighter, with a mono `sound` that sets in later."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=fps)
        picture.width, picture.height, picture.pix_fmt = 32, 16, "yuv420p"
        voice = container.add_stream("aac", rate=sound.rate_hz, layout="mono") if sound else None
        for number in range(num_frames):
            image = np.full((16, 32, 3), 5 * number, np.uint8)
            container.mux(picture.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(picture.encode(None))
        if voice is not None:
            _mux_sound(container, voice, sound, sound_start_s)
    return path


def _mux_sound(container, stream, sound: Sound, start_s: float = 0) -> None:
    interleaved = sound.samples.T.contiguous().numpy().reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(interleaved, "flt", layout=stream.layout.name)
    frame.sample_rate, frame.time_base = sound.rate_hz, Fraction(1, sound.rate_hz)
    frame.pts = round(start_s * sound.rate_hz)
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
