"""Pictures and sounds as the bytes that are sent, and what a received file turns out to be."""

from __future__ import annotations

import hashlib
import io
import logging
import wave
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import av
import torch
from av.error import FFmpegError
from PIL import Image
from torch import Tensor

from ..errors import AudioError, ImageError, RemoteError
from ..shapes import FPS

logger = logging.getLogger(__name__)

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
        image: `b h w c`, a batch of one, 0..1, of 1, 3 or 4 channels; transparent parts become black.
    """
    if not isinstance(image, Tensor):
        raise ImageError(f"The portrait must be a picture, got {image!r}. Connect an IMAGE.")
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4) or 0 in image.shape:
        raise ImageError(f"The portrait must be a picture of 1, 3 or 4 channels, got shape {tuple(image.shape)}.")
    if image.shape[0] != 1:
        raise ImageError(f"The portrait must be one image, got a batch of {image.shape[0]}. Pick one of them.")
    picture = image[0].detach().float().cpu()
    if not picture.isfinite().all():
        raise ImageError("The portrait has values that are no numbers (NaN or infinity). Look at the node before.")
    if picture.shape[-1] == 4:
        picture = picture[..., :3] * picture[..., 3:]
    pixels = picture.clamp(0, 1).mul(255).round().to(torch.uint8).expand(-1, -1, 3)
    portrait = Image.fromarray(pixels.contiguous().numpy())
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


def encode_sound(samples: Tensor, rate_hz: int, num_frames: int, file_name: str = "speech.wav") -> Media:
    """The voice as 16-bit WAV of its own rate, cut to the video's length and `TAIL_S`.

    Args:
        samples: `b c n`, a batch of one, -1..1; more than two channels are averaged.
        num_frames: of the video, 25 a second.
    """
    if samples.ndim != 3 or samples.numel() == 0:
        raise AudioError(f"The sound must be 1 x channels x samples and not empty, got shape {tuple(samples.shape)}.")
    if samples.shape[0] != 1:
        raise AudioError(f"The sound must be one recording, got a batch of {samples.shape[0]}. Pick one of them.")
    kept = samples[0, :, : round((num_frames / FPS + TAIL_S) * rate_hz)].detach().float().cpu()
    if not kept.isfinite().all():
        raise AudioError("The sound has values that are no numbers (NaN or infinity). Look at the node before.")
    if kept.shape[0] > 2:
        kept = kept.mean(0, keepdim=True)
    if kept.shape[1] < num_frames / FPS * rate_hz:
        heard_s, seen_s = kept.shape[1] / rate_hz, num_frames / FPS
        logger.warning("The sound (%.2f s) is shorter than the video (%.2f s).", heard_s, seen_s)
    levels = kept.clamp(-1, 1).mul(32767).round().to(torch.int16)
    return Media(_wav(levels, rate_hz), "audio/wav", file_name)


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
    """What a video file really holds."""

    width: int
    height: int
    fps: float
    num_frames: int
    duration_s: float
    has_sound: bool

    def __str__(self) -> str:
        sound = "with sound" if self.has_sound else "without sound: add the audio downstream"
        length = f"{self.num_frames} frames, {self.fps:g} fps, {self.duration_s:.2f} s"
        return f"{self.width}x{self.height}, {length}, {sound}"


def probe(path: Path) -> VideoProperties:
    """Opens and decodes a video.

    Raises:
        RemoteError: no video in it, no picture that can be decoded, or no length.
    """
    try:
        with av.open(str(path)) as file:
            stream = file.streams.video[0]
            fps = float(stream.average_rate or FPS)
            has_sound = bool(file.streams.audio)
            num_frames = sum(1 for _ in file.decode(stream))
            width, height = stream.codec_context.width, stream.codec_context.height
    except (FFmpegError, IndexError, OSError, ValueError) as error:
        raise RemoteError(f"{path.name} is not a video that can be opened ({type(error).__name__}).") from None
    if num_frames == 0:
        raise RemoteError(f"{path.name} is a video without a picture.")
    return VideoProperties(width, height, fps, num_frames, num_frames / fps, has_sound)
