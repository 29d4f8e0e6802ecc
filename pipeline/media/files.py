"""Files on their way in and out: regular ones, that open no other file, and that are replaced only by whole ones."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from uuid import uuid4

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from ..errors import ConfigError, MultiTalkError

try:
    import fcntl
except ImportError:  # Windows, where nobody can remove a file that another process has open
    fcntl = None

S = TypeVar("S", bound=Stream)

logger = logging.getLogger(__name__)

# What holds sound or pictures in one file. Playlists (hls, concat, dash, image2, ...) open other files and addresses.
FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,avif,caf,dts,dv,eac3,flac,flv,gif,ivf,matroska,mov,mp3,mp4,mpc,mpc8,mpeg,mpegts,"
    "mpegvideo,mxf,nut,ogg,png_pipe,jpeg_pipe,webp_pipe,qoa,rm,tak,truehd,tta,voc,w64,wav,webm,wv"
)
NOTHING_ELSE = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
# How PyAV reads tags that are no UTF-8; from version 19 on it has no other way.
ANY_TAGS: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
A_PART = {"protocol_whitelist": "file,subfile"}  # subfile reads some bytes of a file as if they were all
UNFINISHED = re.compile(r"\.multitalk-[0-9a-f]{32}\.part")  # shorter than the longest name, whatever the file's own
PROBE_BYTES = 2**20  # that a disk must have room for


def check_regular(path: str | Path, error: type[MultiTalkError] = ConfigError) -> Path:
    """The path of a regular file; a pipe or a device might never end.

    Raises:
        MultiTalkError: of type `error`; there is no file, or it is a folder, a pipe, a socket or a device.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise error(f"There is no file {path}. Check the path.") from None
    except (OSError, ValueError) as reason:  # ValueError: a null character
        raise error(f"{path} cannot be opened ({_reason(reason)}). Check the path.") from None
    if not stat.S_ISREG(mode):
        raise error(f"{path} is {_kind(mode)}, not a file. Name a file.")
    return path


@contextmanager
def open_regular(path: str | Path, error: type[MultiTalkError] = ConfigError) -> Iterator[BinaryIO]:
    """A regular file, open for reading.

    Raises:
        MultiTalkError: of type `error`; it is none, or may not be read.
    """
    path = check_regular(path, error)
    try:
        file = path.open("rb")
    except OSError as reason:
        raise error(f"{path} cannot be opened ({_reason(reason)}). Check its permissions.") from None
    with file:
        yield file


@contextmanager
def open_container(
    path: str | Path, kind: str, error: type[MultiTalkError], advice: str, part: tuple[int, int] | None = None
) -> Iterator[InputContainer]:
    """A file of sound or video, opened by FFmpeg; its name never chooses a protocol, and it opens no other file.

    Args:
        kind: of the content, for messages: `audio` or `a video`.
        advice: for messages: what the file may be converted to.
        part: the bytes, from the first to behind the last, that are taken for a file; None takes all.

    Raises:
        MultiTalkError: of type `error`; it is no regular file, of no kind that holds media, or damaged.
    """
    path = check_regular(path, error)
    address, options = f"file:{path.absolute()}", NOTHING_ELSE  # whatever its name, none of FFmpeg's other protocols
    if part is not None:
        start, end = map(str, part)
        address, options = f"subfile:{address}", {**options, **A_PART, "start": start, "end": end}
    try:
        with av.open(address, "r", container_options=options, **ANY_TAGS) as container:
            yield container
    except FFmpegError as reason:
        text = (reason.strerror or "damaged").lower()
        raise error(f"{path.name} cannot be read as {kind} ({text}). {advice}") from reason


def decoded(container: InputContainer, stream: Stream, name: str) -> Iterator[Any]:
    """The frames of a stream, and None in place of each damaged packet; a file that breaks off ends with a word."""
    try:
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except FFmpegError:
                yield None
            else:
                yield from frames
    except FFmpegError as error:  # of the file itself; what comes after it cannot be found
        logger.warning("%s cannot be read to its end (%s).", name, (error.strerror or "damaged").lower())


def moving_pictures(container: InputContainer) -> list[VideoStream]:
    """The video streams of a file; a cover is none."""
    return [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]


def decodable(streams: Iterable[S]) -> list[S]:
    """The streams that FFmpeg has a decoder for."""
    return [stream for stream in streams if stream.codec_context is not None]


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """The path of a file beside `path` that replaces it when the block ends well, and is removed otherwise.

    Its folder is made where it is missing. Files that killed processes have left there are removed.

    Raises:
        OSError: `path` is a folder, a pipe or a device, the disk is full, or it refuses the file for another reason.
    """
    target = _target(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_orphans(target.parent)
    with _unfinished(target.parent) as unfinished:
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        _replace(unfinished, target)


def check_output(path: str | Path) -> None:
    """Tries to write where `atomic_write` is going to; nothing is left of it.

    Raises:
        ConfigError: a file of this name cannot be written; the message has the system's reason.
    """
    try:
        target = _target(path)
        missing = [folder for folder in target.parents if not folder.exists()]
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _check_name(target)
            with _unfinished(target.parent) as unfinished, unfinished.open("wb") as file:
                file.write(bytes(PROBE_BYTES))
                os.fsync(file.fileno())
        finally:
            for folder in missing:
                with suppress(OSError):
                    folder.rmdir()
    except FileExistsError as reason:
        raise ConfigError(f"{path} cannot be written ({_reason(reason)}). Name a file, such as video.mp4.") from None
    except (OSError, ValueError) as reason:  # ValueError: a null character
        raise ConfigError(
            f"{path} cannot be written ({_reason(reason)}). Make room, or choose another folder or name."
        ) from None


def unused_path(folder: Path, stem: str, suffix: str) -> Path:
    """A path in `folder` that nothing has: `<stem><suffix>`, or with a number from 2 on behind the stem."""
    names = itertools.chain((stem,), (f"{stem}-{number}" for number in itertools.count(2)))
    return next(path for name in names if not os.path.lexists(path := folder / f"{name}{suffix}"))


def _target(path: str | Path) -> Path:
    """The regular file that is written: `path`, or where it leads as a link."""
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target
    if not stat.S_ISREG(mode):
        raise FileExistsError(errno.EEXIST, f"it is {_kind(mode)}, not a file")
    return target


def _check_name(target: Path) -> None:
    """Raises OSError where the folder takes no file of this name, or has one that may not be changed."""
    if not target.exists():
        target.open("xb").close()
        target.unlink()
    elif not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "the file is read-only")


@contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """A new, empty file in `folder`, locked as long as this process lives, and removed in the end if still there."""
    path, lock = _new_file(folder)
    try:
        yield path
    finally:
        with suppress(FileNotFoundError):
            path.unlink()
        if lock is not None:
            os.close(lock)


def _new_file(folder: Path) -> tuple[Path, int | None]:
    """An empty file and its lock; None on Windows, where what is open can neither be removed nor renamed."""
    while True:
        path = folder / f".multitalk-{uuid4().hex}.part"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        if fcntl is None:
            os.close(descriptor)
            return path, None
        with suppress(OSError):  # a file system without locks: then nobody can take it for an orphan either
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.exists():  # nobody has taken it for an orphan before it was locked
            return path, descriptor
        os.close(descriptor)


def _remove_orphans(folder: Path) -> None:
    """Removes unfinished files that no living process holds."""
    for path in folder.glob(".multitalk-*.part"):
        if UNFINISHED.fullmatch(path.name) and not path.is_symlink():
            with suppress(OSError):
                _remove_orphan(path)


def _remove_orphan(path: Path) -> None:
    if fcntl is None:
        path.unlink()  # refused while it is open
        return
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        logger.info("Removed %s, which an interrupted run had left.", path)
    finally:
        os.close(descriptor)


def _replace(unfinished: Path, target: Path) -> None:
    """Renames, or copies where `target` is a mount of its own, as a single file of a container is."""
    try:
        os.replace(unfinished, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EBUSY):
            raise
        shutil.copyfile(unfinished, target)


def _kind(mode: int) -> str:
    """A file's type, for messages."""
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
    return next((name for test, name in kinds if test(mode)), "a device")


def _reason(error: OSError | ValueError) -> str:
    """The system's reason, for messages."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
