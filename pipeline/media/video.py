"""Video files: written frame by frame beside their sound, and read whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from uuid import uuid4

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from PIL import Image
from torch import LongTensor, Tensor

from ..audio import waveform
from ..audio.waveform import Sound, fit_length
from ..errors import ImageError, MultiTalkError
from ..shapes import FPS

CRF = 16  # H.264 quality at which no loss is seen
# x264's macroblock tree reads memory that nobody has written: the same frames came out in other bytes now and then.
# Without it they never do, and files are a third larger at the same quality or a little better.
X264_OPTIONS = {"crf": str(CRF), "x264-params": "mbtree=0"}
AUDIO_BITS_PER_CHANNEL = 128_000
BT709 = 1  # its number among colour spaces, primaries and transfers (ITU-T H.273)
# What AAC can hold, highest first. Of several layouts with the same channels, one without an LFE channel, which loses
# everything but the bass; 5.1 and 7.1 are what a sound of 6 or 8 channels is.
AAC_RATES_HZ = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
AAC_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 7: "7.0", 8: "7.1"}


class VideoWriter:
    """
    Writes an mp4 file (H.264, AAC) as its frames come, in constant memory.

    The sound keeps its rate and channels, and is cut, or continued with silence, to the length of the picture. The
    file appears under its name when the `with` block ends well; after an exception there is none.

    Raises:
        MultiTalkError: the disk is full, or refuses the file for another reason.
    """

    def __init__(self, path: str | Path, fps: Fraction | float = FPS, sound: Sound | None = None):
        self.path = Path(path)
        self.fps = Fraction(fps).limit_denominator(1001)
        self.num_frames = 0
        self._sound = _encodable(sound) if sound is not None else None
        self._unfinished = self.path.with_name(f".{self.path.name}.{uuid4().hex[:8]}.part")
        self._picture_stream = self._sound_stream = None
        self._reformatter = VideoReformatter()  # one for all: making one takes longer than a small frame

    def __enter__(self) -> VideoWriter:
        options = {"movflags": "+faststart"}
        with _told(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(str(self._unfinished), "w", format="mp4", container_options=options)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        try:
            with _told(self.path) if kind is None else suppress(OSError):  # what is wrong is known then
                if kind is None:
                    self._finish()
                self._container.close()
                if kind is None:
                    os.replace(self._unfinished, self.path)
        finally:
            self._unfinished.unlink(missing_ok=True)

    def add(self, frames: Tensor) -> None:
        """Writes frames: `c f h w` in -1..1, or uint8 `f h w c`. Odd sides grow by one pixel, as H.264 wants them."""
        for picture in _pictures(frames):
            with _told(self.path):
                if self._picture_stream is None:
                    self._open_streams(*picture.shape[:2])
                self._add_picture(picture)
                self._add_sound()

    def _open_streams(self, height: int, width: int) -> None:
        self._picture_stream = self._container.add_stream("libx264", rate=self.fps, options=X264_OPTIONS)
        self._picture_stream.height, self._picture_stream.width = height, width
        self._picture_stream.pix_fmt = "yuv420p"
        codec = self._picture_stream.codec_context
        codec.colorspace = codec.color_primaries = codec.color_trc = BT709
        codec.color_range = ColorRange.MPEG
        if self._sound is not None:
            layout = AAC_LAYOUTS[self._sound.num_channels]
            self._sound_stream = self._container.add_stream("aac", rate=self._sound.rate_hz, layout=layout)
            self._sound_stream.bit_rate = AUDIO_BITS_PER_CHANNEL * self._sound.num_channels

    def _add_picture(self, picture: np.ndarray) -> None:
        height, width = self._picture_stream.height, self._picture_stream.width
        if picture.shape[:2] != (height, width):
            got = f"{picture.shape[1]}x{picture.shape[0]}"
            raise ImageError(f"A frame of {got} pixels cannot follow frames of {width}x{height}. Keep one size.")
        # Averages 2x2 colours without bias; the other interpolations shift the chroma by a sixth of a level.
        frame = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(picture, "rgb24"),
            format="yuv420p",
            interpolation="AREA",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
        )
        frame.pts, frame.time_base = self.num_frames, 1 / self.fps
        self._container.mux(self._picture_stream.encode(frame))
        self.num_frames += 1

    def _add_sound(self) -> None:
        """Writes the sound of the last frame, so that the file is interleaved as players read it."""
        if self._sound is None:
            return
        rate_hz = self._sound.rate_hz
        start, end = (round(time / self.fps * rate_hz) for time in (self.num_frames - 1, self.num_frames))
        samples = fit_length(self._sound.samples[:, start:end], end - start)
        interleaved = samples.T.contiguous().numpy().reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(interleaved, "flt", layout=AAC_LAYOUTS[self._sound.num_channels])
        frame.sample_rate, frame.pts, frame.time_base = rate_hz, start, Fraction(1, rate_hz)
        self._container.mux(self._sound_stream.encode(frame))

    def _finish(self) -> None:
        """Writes what the encoders still hold."""
        if not self.num_frames:
            raise ImageError(f"{self.path.name} got no frame, so there is nothing to write.")
        for stream in filter(None, (self._picture_stream, self._sound_stream)):
            self._container.mux(stream.encode(None))


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the disk says in a sentence."""
    try:
        yield
    except OSError as error:
        raise MultiTalkError(
            f"{path} cannot be written ({error.strerror or error}). Make room or choose another folder, and run again; "
            f"windows that were kept are not made anew."
        ) from error


class RateConverter:
    """Turns the model's frames, 25 a second, into those of a file of another rate, window by window.

    Args:
        num_frames_25: of the model, in all.
        fps: of the file; every frame of it shows what the model made for its time.
        num_frames: of the file.
    """

    def __init__(self, num_frames_25: int, fps: Fraction | float = FPS, num_frames: int | None = None):
        self._sources = resample_frame_times(num_frames_25, fps, num_frames)
        self._done = 0

    def __call__(self, frames: Tensor) -> Tensor:
        """The file's share of the model's next frames, `c f h w` both; there may be none."""
        start, self._done = self._done, self._done + frames.shape[1]
        inside = self._sources[(self._sources >= start) & (self._sources < self._done)]
        return frames[:, inside - start]


def is_video(path: str | Path) -> bool:
    """Whether a file is a video rather than a picture; False for what is neither."""
    with suppress(OSError), Image.open(path):
        return False
    with suppress(OSError), av.open(str(path), container_options=waveform.LOCAL, metadata_errors="replace") as file:
        is_picture = file.format.name.endswith(("_pipe", "image2"))  # by the ending of its name, whatever is in it
        return bool(file.streams.video) and not is_picture
    return False


def read_video(path: str | Path) -> tuple[Tensor, Fraction, Sound | None]:
    """
    A whole video: its frames (uint8, `f h w c`, RGB, upright), frames a second, and its sound where it has any.

    Raises:
        ImageError: the file cannot be opened or holds no picture.
    """
    path = Path(path)
    try:
        with av.open(str(path), container_options=waveform.LOCAL, metadata_errors="replace") as container:
            if not container.streams.video:
                raise ImageError(f"{path.name} holds no picture. Choose a video.")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            frames = [_upright(frame) for frame in container.decode(stream)]
            fps, has_sound = stream.average_rate or Fraction(FPS), bool(container.streams.audio)
    except av.error.FileNotFoundError as error:
        raise ImageError(f"There is no file {path}. Check the path.") from error
    except av.error.FFmpegError as error:
        reason = error.strerror.lower()
        raise ImageError(f"{path.name} cannot be read as a video ({reason}). Convert it to MP4.") from error
    if not frames:
        raise ImageError(f"{path.name} holds a video track without a single frame. Choose another video.")
    return torch.from_numpy(np.stack(frames)), fps, waveform.read(path) if has_sound else None


def resample_frame_times(num_frames_25: int, fps: Fraction | float, num_frames: int | None = None) -> LongTensor:
    """
    Which of the model's frames, 25 a second, each frame of a video at `fps` shows, so that it stays with the sound.

    It is the one that a 25 fps player shows in the middle of that frame's time, `floor((i + 1/2) 25 / fps)`: never
    half a frame early or late, and nothing is added up. Slower rates leave frames out, faster ones show some twice.

    Args:
        num_frames: of the video at `fps`; None takes the same duration.
    """
    fps = Fraction(fps).limit_denominator(1001)
    if num_frames is None:
        num_frames = max(1, round(num_frames_25 * fps / FPS))
    middle = [(2 * frame + 1) * FPS / (2 * fps) for frame in range(num_frames)]
    return torch.tensor([min(int(time), num_frames_25 - 1) for time in middle])


def _encodable(sound: Sound) -> Sound:
    """`sound`, at the nearest rate and with the channels that AAC can hold where it cannot hold its own."""
    waveform.check(sound)
    samples, rate_hz = sound.samples.float().cpu(), sound.rate_hz
    if sound.num_channels not in AAC_LAYOUTS:
        samples = samples.mean(dim=0, keepdim=True)
    if rate_hz not in AAC_RATES_HZ:
        rate_hz = min((rate for rate in AAC_RATES_HZ if rate > sound.rate_hz), default=AAC_RATES_HZ[0])
    return Sound(waveform.resample(samples, sound.rate_hz, rate_hz), rate_hz)


def _pictures(frames: Tensor) -> Iterator[np.ndarray]:
    """One frame after the other as uint8 `h w c`, both sides even, rounded to nearest."""
    is_bytes = frames.dtype == torch.uint8
    if frames.ndim != 4 or frames.shape[-1 if is_bytes else 0] != 3:
        raise ImageError(
            f"Frames must be RGB, `f h w 3` in bytes or `3 f h w` in -1..1, got {frames.dtype} {tuple(frames.shape)}."
        )
    for frame in frames if is_bytes else frames.transpose(0, 1):
        if not is_bytes:
            frame = ((frame.float() + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0)
        picture = frame.cpu().numpy()
        height, width, _ = picture.shape
        yield np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _upright(frame: av.VideoFrame) -> np.ndarray:
    """RGB `h w c`, turned as the camera was held."""
    rgb = frame.reformat(
        format="rgb24",
        src_colorspace=frame.colorspace,
        src_color_range=frame.color_range,
        dst_color_range=ColorRange.JPEG,  # unsaid, PyAV 14 takes every video's colours for BT.601's
    )
    return np.ascontiguousarray(np.rot90(rgb.to_ndarray(), frame.rotation // 90))
