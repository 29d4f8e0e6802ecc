"""Video files: written frame by frame beside their sound, and read whole."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import av
import numpy as np
import torch
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream
from torch import Tensor

from ..audio.waveform import Sound, check, fit_length, resample, to_mono, within_full_scale
from ..errors import ConfigError, ImageError, MultiTalkError
from ..shapes import FPS
from .files import atomic_write, check_output, decodable, decoded, moving_pictures, open_container
from .picture import is_picture
from .pixels import to_uint8
from .sound import read_sound

logger = logging.getLogger(__name__)

# The endings that hold H.264 beside AAC, and FFmpeg's formats of them.
FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
CRF = 16  # H.264 quality at which no loss is seen
# x264's macroblock tree reads memory that nobody has written: the same frames came out in other bytes now and then.
# Without it they never do, and files are a third larger at the same quality or a little better.
# It holds back a frame for each of its threads, by default three for two cores; a file that is watched as it grows
# shows no later than that on larger machines, and comes out the same on all of them.
X264_OPTIONS = {"crf": str(CRF), "x264-params": "mbtree=0:threads=3"}
FASTSTART = {"movflags": "+faststart"}  # the index stands before the pictures
# Each fifth of a second is whole by itself and on the disk at once: what is there can be watched, whatever happens.
GROWING = {"movflags": "+delay_moov+default_base_moof", "frag_duration": "200000", "flush_packets": "1"}
MAX_FRAME_BYTES = 16 * 10**9  # of a video that is read whole
AUDIO_BITS_PER_CHANNEL = 128_000
BT709 = 1  # its number among colour spaces, primaries and transfers (ITU-T H.273)
# What AAC can hold, highest first. Of several layouts with the same channels, one without an LFE channel, which loses
# everything but the bass; 5.1 and 7.1 are what a sound of 6 or 8 channels is.
AAC_RATES_HZ = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
AAC_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 7: "7.0", 8: "7.1"}


def check_video_path(path: str | Path) -> None:
    """Checks, before anything is computed, that a video can be written to `path`.

    Raises:
        ConfigError: the disk does not take the file, or its ending is none of `FORMATS`.
    """
    check_output(path)
    _format(path)


@dataclass(frozen=True)
class Video:
    """A whole video, decoded.

    Attributes:
        frames: uint8 `f h w c`, RGB, upright.
        times_s: when each frame is first shown, `f` in float64, from 0 on.
        fps: frames a second on the average.
    """

    frames: Tensor
    times_s: Tensor
    fps: Fraction
    sound: Sound | None


class _Streams(NamedTuple):
    """The streams of a file that is being written."""

    picture: VideoStream
    sound: AudioStream | None


class VideoWriter:
    """
    Writes a video file (H.264, AAC; mp4, mov or mkv by its ending) as its frames come, in constant memory.

    The sound keeps its rate and channels, and is cut, or continued with silence, to the length of the picture. The
    file appears under its name when the `with` block ends well; after an exception there is none.

    Args:
        part: a file that grows meanwhile, and is copied in the end; it can be watched at any time, and stays where the
            block does not end well.

    Raises:
        ConfigError: the file's ending is that of no such format.
        MultiTalkError: the disk is full, or refuses the file for another reason.
    """

    def __init__(
        self, path: str | Path, fps: Fraction | float = FPS, sound: Sound | None = None, part: Path | None = None
    ):
        self.path, self._part = Path(path), part
        self.fps = Fraction(fps).limit_denominator(1001)
        self.num_frames = 0
        self._format = _format(path)
        self._sound = None if sound is None else _encodable(sound)
        self._reformatter = VideoReformatter()  # one for all: making one takes longer than a small frame
        self._files: ExitStack
        self._container: OutputContainer
        self._streams: _Streams | None = None

    def __enter__(self) -> VideoWriter:
        with _disk_errors(self.path), ExitStack() as files:
            if self._part is None:
                unfinished, options = files.enter_context(atomic_write(self.path)), FASTSTART
            else:
                self._part.parent.mkdir(parents=True, exist_ok=True)
                unfinished, options = self._part, GROWING
            self._container = files.enter_context(_output_container(unfinished, self._format, options))
            self._files = files.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            with _disk_errors(self.path):
                with self._files:
                    self._finish()
                if self._part is not None:
                    _copy_streams(self._part, self.path, self._format)
                    self._part.unlink()
        else:
            with suppress(OSError):  # a full disk refuses the file's end too; the first error counts
                self._files.__exit__(kind, error, trace)
            if self._part is not None and self.num_frames:
                logger.warning("The video as far as it was made is in %s.", self._part)
            elif self._part is not None:
                self._part.unlink(missing_ok=True)

    def add(self, frames: Tensor) -> None:
        """Writes frames: `c f h w` in -1..1, or uint8 `f h w c`. Odd sides grow by one pixel, as H.264 wants them."""
        for picture in _pictures(frames):
            with _disk_errors(self.path):
                if self._streams is None:
                    self._streams = self._open_streams(*picture.shape[:2])
                self._add_picture(self._streams.picture, picture)
                if self._sound is not None and self._streams.sound is not None:
                    self._add_sound(self._streams.sound, self._sound)

    def _open_streams(self, height: int, width: int) -> _Streams:
        picture = self._container.add_stream("libx264", rate=self.fps, options=X264_OPTIONS)
        picture.height, picture.width, picture.pix_fmt = height, width, "yuv420p"
        codec = picture.codec_context
        codec.colorspace = codec.color_primaries = codec.color_trc = BT709
        codec.color_range = ColorRange.MPEG
        if self._sound is None:
            return _Streams(picture, None)
        layout = AAC_LAYOUTS[self._sound.num_channels]
        sound = self._container.add_stream("aac", rate=self._sound.rate_hz, layout=layout)
        sound.bit_rate = AUDIO_BITS_PER_CHANNEL * self._sound.num_channels
        return _Streams(picture, sound)

    def _add_picture(self, stream: VideoStream, picture: np.ndarray) -> None:
        height, width = picture.shape[:2]
        if (height, width) != (stream.height, stream.width):
            raise ImageError(
                f"A frame of {width}x{height} pixels cannot follow frames of {stream.width}x{stream.height}. "
                f"Keep one size."
            )
        # Averages 2x2 colours without bias; the other interpolations shift the chroma by a sixth of a level.
        frame = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(picture, "rgb24"),
            format="yuv420p",
            interpolation="AREA",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
        )
        frame.pts, frame.time_base = self.num_frames, 1 / self.fps
        self._container.mux(stream.encode(frame))
        self.num_frames += 1

    def _add_sound(self, stream: AudioStream, sound: Sound) -> None:
        """Writes the sound of the last frame, so that the file is interleaved as players read it."""
        start, end = (round(time / self.fps * sound.rate_hz) for time in (self.num_frames - 1, self.num_frames))
        samples = fit_length(sound.samples[:, start:end], end - start)
        interleaved = samples.T.contiguous().numpy().reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(interleaved, "flt", layout=AAC_LAYOUTS[sound.num_channels])
        frame.sample_rate, frame.pts, frame.time_base = sound.rate_hz, start, Fraction(1, sound.rate_hz)
        self._container.mux(stream.encode(frame))

    def _finish(self) -> None:
        """Writes what the encoders still hold."""
        if self._streams is None:
            raise ImageError(f"{self.path.name} got no frame, so there is nothing to write.")
        for stream in filter(None, self._streams):
            self._container.mux(stream.encode(None))


def _output_container(path: Path, file_format: str, options: dict[str, str]) -> OutputContainer:
    """A new file; whatever its name, it is none of FFmpeg's other protocols."""
    options = {} if file_format == "matroska" else options  # which can be watched at any time as it is
    return av.open(f"file:{path.absolute()}", "w", format=file_format, container_options=options)


def _copy_streams(part: Path, path: Path, file_format: str) -> None:
    """Writes the pictures and sounds of `part`, as they are, into an ordinary file."""
    with (
        av.open(f"file:{part.absolute()}") as source,
        atomic_write(path) as unfinished,
        _output_container(unfinished, file_format, FASTSTART) as target,
    ):
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:  # else it marks the end
                packet.stream = streams[packet.stream.index]
                target.mux(packet)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turns the disk's errors into a sentence."""
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
        self._position = 0

    def __call__(self, frames: Tensor) -> Tensor:
        """The file's share of the model's next frames, `c f h w` both; there may be none."""
        start, self._position = self._position, self._position + frames.shape[1]
        inside = self._sources[(self._sources >= start) & (self._sources < self._position)]
        return frames[:, inside - start]


def is_video(path: str | Path) -> bool:
    """True for a file of moving pictures, False for one picture and for what is neither."""
    if is_picture(path):
        return False
    with suppress(ImageError), open_container(path, "a video", ImageError, "") as container:
        return bool(moving_pictures(container))
    return False


def read_video(path: str | Path) -> Video:
    """
    A whole video, with its sound where it has any.

    Raises:
        ImageError: the file cannot be opened, holds no picture, or more than 16 GB of frames.
    """
    path = Path(path)
    with open_container(path, "a video", ImageError, "Convert it to MP4.") as container:
        stream = _default_picture(container, path.name)
        stream.thread_type = "AUTO"
        fps = stream.average_rate or Fraction(FPS)
        frames, times_s = _decode(container, stream, fps, path.name)
        has_sound = bool(container.streams.audio)
    return Video(frames, times_s, fps, read_sound(path) if has_sound else None)


def frames_at_25(frames: Tensor, times_s: Tensor) -> Tensor:
    """The frames `f ...` of a video, first shown at `times_s`, that `indices_at_25` picks; `frames` where it is all."""
    indices = indices_at_25(times_s)
    return frames if torch.equal(indices, torch.arange(len(frames))) else frames[indices]


def indices_at_25(times_s: Tensor) -> Tensor:
    """
    Indices of the frames that a video of any rate, or of a varying one, shows in the middle of each of the model's 25 a
    second, as many as it lasts.

    Args:
        times_s: when each is first shown, `f`, from 0 on.
    """
    times_s = times_s.double()
    duration_s = times_s[-1].item() * len(times_s) / max(1, len(times_s) - 1)  # the last is shown as long as the others
    middles_s = (torch.arange(max(1, round(duration_s * FPS)), dtype=torch.float64) + 0.5) / FPS
    return (torch.searchsorted(times_s, middles_s, right=True) - 1).clamp(min=0)


def resample_frame_times(num_frames_25: int, fps: Fraction | float, num_frames: int | None = None) -> Tensor:
    """
    Indices `f` of the model's frames, 25 a second, that a video at `fps` shows, so that it stays with the sound.

    It is the one that a 25 fps player shows in the middle of that frame's time, `floor((i + 1/2) 25 / fps)`: never
    half a frame early or late, and nothing is added up. Slower rates leave frames out, faster ones show some twice.

    Args:
        num_frames: of the video at `fps`; None takes the same duration.
    """
    fps = Fraction(fps).limit_denominator(1001)
    if num_frames is None:
        num_frames = max(1, round(num_frames_25 * fps / FPS))
    middles = [(2 * frame + 1) * FPS / (2 * fps) for frame in range(num_frames)]
    return torch.tensor([min(int(middle), num_frames_25 - 1) for middle in middles])


class BackgroundWriter:
    """A `VideoWriter` that encodes frames while their successors are made; one portion is held at a time.

    A portion's error is raised when the next one comes, or at the end.

    Args:
        writer: entered and left by its owner.
    """

    def __init__(self, writer: VideoWriter):
        self._writer, self._thread = writer, ThreadPoolExecutor(1, "video")
        self._portion: Future[None] | None = None

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        if kind is None:
            self._wait()

    def add(self, frames: Tensor) -> None:
        """Takes frames as `VideoWriter.add` does."""
        self._wait()
        self._portion = self._thread.submit(self._writer.add, frames)

    def _wait(self) -> None:
        if self._portion is not None:
            self._portion.result()


def _format(path: str | Path) -> str:
    """FFmpeg's format for the ending of a file's name."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        endings = ", ".join(FORMATS)
        raise ConfigError(f"{path.name} has an ending that no video is written with. Let the name end in {endings}.")
    return FORMATS[path.suffix.lower()]


def _encodable(sound: Sound) -> Sound:
    """`sound`, at the nearest rate and with the channels that AAC can hold where it cannot hold its own."""
    check(sound)
    if sound.num_channels not in AAC_LAYOUTS:
        sound = to_mono(sound)
    sound = within_full_scale(sound, "The video's sound")
    samples, rate_hz = sound.samples.float().cpu(), sound.rate_hz
    if rate_hz not in AAC_RATES_HZ:
        rate_hz = min((rate for rate in AAC_RATES_HZ if rate > sound.rate_hz), default=AAC_RATES_HZ[0])
    return Sound(resample(samples, sound.rate_hz, rate_hz), rate_hz)


def _pictures(frames: Tensor) -> Iterator[np.ndarray]:
    """One frame after the other as uint8 `h w c`, both sides even."""
    is_bytes = frames.dtype == torch.uint8
    if frames.ndim != 4 or frames.shape[-1 if is_bytes else 0] != 3:
        raise ImageError(
            f"Frames must be RGB, `f h w 3` in bytes or `3 f h w` in -1..1, got {frames.dtype} {tuple(frames.shape)}."
        )
    for frame in frames if is_bytes else frames.transpose(0, 1):
        picture = (frame if is_bytes else to_uint8(frame).permute(1, 2, 0)).cpu().numpy()
        height, width, _ = picture.shape
        yield np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _default_picture(container: InputContainer, name: str) -> VideoStream:
    """The video stream that players take; a cover is none."""
    streams = decodable(moving_pictures(container))
    if not streams:
        raise ImageError(f"{name} holds no picture that can be decoded here. Choose a video, or convert it to MP4.")
    return next((stream for stream in streams if stream.disposition & Disposition.default), streams[0])


def _decode(container: InputContainer, stream: VideoStream, fps: Fraction, name: str) -> tuple[Tensor, Tensor]:
    """The frames `f h w c` of a stream in one array, and when each is first shown."""
    frames, times_s, start_s, num_damaged = np.zeros((0, 0, 0, 3), np.uint8), [], 0.0, 0
    for frame in decoded(container, stream, name):
        if frame is None:
            num_damaged += 1
            continue
        picture, index = _upright(frame), len(times_s)
        if not index:
            num_frames = min(stream.frames, MAX_FRAME_BYTES // picture.nbytes)  # 0 where the file does not tell
            frames = np.zeros((max(1, num_frames), *picture.shape), np.uint8)
            start_s = frame.time or 0.0
        if picture.shape != frames.shape[1:]:
            raise ImageError(f"{name} changes its size after {index} frames. Convert it to one size.")
        if (index + 1) * picture.nbytes > MAX_FRAME_BYTES:
            raise ImageError(f"{name} takes more than {MAX_FRAME_BYTES / 10**9:g} GB as frames. Cut it shorter.")
        if index == len(frames):
            frames.resize((max(index + 1, 5 * index // 4), *picture.shape), refcheck=False)
        frames[index] = picture
        time_s = index / float(fps) if frame.time is None else frame.time - start_s
        times_s.append(max(time_s, times_s[-1] if times_s else 0.0))
    if not times_s:
        raise ImageError(f"{name} holds a video track without a single frame. Choose another video.")
    if num_damaged:
        logger.warning("%s: %d damaged packets of its picture were left out.", name, num_damaged)
    frames.resize((len(times_s), *frames.shape[1:]), refcheck=False)
    return torch.from_numpy(frames), torch.tensor(times_s, dtype=torch.float64)


def _upright(frame: av.VideoFrame) -> np.ndarray:
    """RGB `h w c`, turned as the camera was held."""
    rgb = frame.reformat(
        format="rgb24",
        src_colorspace=frame.colorspace,
        src_color_range=frame.color_range,
        dst_color_range=ColorRange.JPEG,  # unsaid, PyAV 14 takes every video's colours for BT.601's
    )
    return np.ascontiguousarray(np.rot90(rgb.to_ndarray(), frame.rotation // 90))
