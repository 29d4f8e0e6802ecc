"""Pictures and sounds as the bytes that are sent, and the properties of a file that came."""

from __future__ import annotations

import hashlib
import io
import wave
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..audio.waveform import Sound, to_mono, within_full_scale
from ..errors import ImageError, RemoteError
from ..media.files import decodable, decoded, moving_pictures, open_container
from ..media.picture import to_rgb
from ..shapes import FPS

MAX_UPLOAD_BYTES = 20 * 2**20
MAX_PNG_BYTES = 8 * 2**20  # above, JPEG: a noisy 2048x2048 picture is 12.6 MB as PNG and 4.9 MB as JPEG
MAX_SIDE = 2048  # fal crops to 480p or 720p anyway
TAIL_S = 0.5  # sound kept after the last frame, so that the last words are heard whole
HEAD_BYTES = 12  # what `container` needs to see


@dataclass(frozen=True)
class Media:
    """A file to send. The name is ours, never the user's: it is public, and goes into a header."""

    data: bytes
    content_type: str
    file_name: str

    def __post_init__(self) -> None:
        if len(self.data) > MAX_UPLOAD_BYTES:
            raise RemoteError(
                f"{self.file_name} has {len(self.data) / 2**20:.1f} MB, more than the {MAX_UPLOAD_BYTES // 2**20} MB "
                f"that are sent. Make the image smaller, or give sound of a lower rate."
            )

    @cached_property
    def sha256(self) -> str:
        """Names the contents and their type."""
        return hashlib.sha256(self.data + self.content_type.encode()).hexdigest()


def encode_image(image: Tensor) -> Media:
    """The portrait as PNG, or JPEG where that would be large.

    Args:
        image: as `to_rgb` takes it, a batch of one; transparent parts become white, as in the local engine.
    """
    if not isinstance(image, Tensor):
        raise ImageError(f"The portrait must be a picture, got a {type(image).__name__}. Connect an IMAGE.")
    if image.ndim == 4 and image.shape[0] != 1:
        raise ImageError(f"The portrait must be one image, got a batch of {image.shape[0]}. Pick one of them.")
    portrait = Image.fromarray(to_rgb(image.detach().cpu()).numpy())
    portrait.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return _smallest(portrait)


def _smallest(portrait: Image.Image) -> Media:
    png = io.BytesIO()
    portrait.save(png, "PNG")
    if png.tell() <= MAX_PNG_BYTES:
        return Media(png.getvalue(), "image/png", "portrait.png")
    jpeg = io.BytesIO()
    portrait.save(jpeg, "JPEG", quality=95)
    return Media(jpeg.getvalue(), "image/jpeg", "portrait.jpg")


def encode_sound(sound: Sound, duration_s: float | None = None, file_name: str = "speech.wav") -> Media:
    """The voice as 16-bit WAV of its own rate.

    Mono and stereo stay as they are, unless the channels of the stereo cancel each other. Sound that goes beyond full
    scale is turned down as a whole, so that nothing of it is clipped.

    Args:
        duration_s: of the video; the sound is cut `TAIL_S` later. None takes all of it.
    """
    if duration_s is not None:
        sound = Sound(sound.samples[:, : round((duration_s + TAIL_S) * sound.rate_hz)], sound.rate_hz)
    mono = to_mono(sound).samples
    samples = sound.samples if sound.num_channels == 2 and not _cancels(sound.samples, mono) else mono
    samples = within_full_scale(Sound(samples, sound.rate_hz), file_name).samples
    return Media(_wav(samples.mul(32767).round().to(torch.int16), sound.rate_hz), "audio/wav", file_name)


def _cancels(stereo: Tensor, mono: Tensor) -> bool:
    """True where the mono mix is one of the channels: their mean has lost the voice."""
    return bool((stereo == mono).all(dim=1).any()) and not torch.equal(stereo[0], stereo[1])


def _wav(levels: Tensor, rate_hz: int) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(levels.shape[0])
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(levels.T.contiguous().numpy().astype("<i2").tobytes())
    return buffer.getvalue()


def container(head: bytes) -> str | None:
    """`mp4` or `webm` by a file's first bytes, None for anything else: what a server calls it proves nothing."""
    if head[4:8] == b"ftyp":
        return "mp4"
    return "webm" if head[:4] == b"\x1aE\xdf\xa3" else None


@dataclass(frozen=True)
class VideoProperties:
    """Size, rate and length of a video file, as its pictures say."""

    width: int
    height: int
    fps: float
    num_frames: int
    duration_s: float
    has_sound: bool
    num_damaged: int  # packets of the picture that cannot be decoded

    def __str__(self) -> str:
        sound = "with sound" if self.has_sound else "without sound: add the audio downstream"
        length = f"{self.num_frames} frames, {self.fps:g} fps, {self.duration_s:.2f} s"
        damage = f", {self.num_damaged} packets of the picture damaged" if self.num_damaged else ""
        return f"{self.width}x{self.height}, {length}, {sound}{damage}"


def probe(path: Path) -> VideoProperties:
    """Opens and decodes a video.

    Raises:
        RemoteError: no video in it, no picture that can be decoded, or no length.
    """
    try:
        with open_container(path, "a video", RemoteError, "Look at the request at fal.ai/dashboard.") as file:
            stream = decodable(moving_pictures(file))[0]
            fps = float(stream.average_rate or FPS)
            has_sound = bool(file.streams.audio)
            frames = [frame is not None for frame in decoded(file, stream, path.name)]
            width, height = stream.codec_context.width, stream.codec_context.height
    except IndexError:
        raise RemoteError(f"{path.name} holds no picture. Look at the request at fal.ai/dashboard.") from None
    num_frames = sum(frames)
    if num_frames == 0:
        raise RemoteError(f"{path.name} is a video without a picture.")
    return VideoProperties(width, height, fps, num_frames, num_frames / fps, has_sound, len(frames) - num_frames)
