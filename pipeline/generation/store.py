"""Keeps the finished windows of a run on disk, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from einops import rearrange
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import ConfigError, ImageError
from ..media.files import UNFINISHED, atomic_write, check_regular, moving_pictures, open_container, unused_path
from ..media.pixels import from_uint8, to_uint8

logger = logging.getLogger(__name__)

FORMAT = 4  # raised when the same inputs come to give other frames, or the files change
SAMPLES = 64  # values of each weight that its fingerprint looks at
LIMIT_BYTES = 50 * 10**9
GB = 10**9
RUN_NAME = re.compile(r"[0-9a-f]{32}")  # see `run_key`
PART = "part"  # the name, without its ending, of the video as far as it is made
MAX_STEM = 40  # characters: with the part's ending it is a name that every disk takes
WINDOW_FILE = re.compile(rf"\d{{4,}}\.(mkv|safetensors)|{PART}\.\w+|{UNFINISHED.pattern}")


@dataclass(frozen=True)
class FinishedWindow:
    """A window's frames as the video shows them, and the motion frames as they were.

    Attributes:
        frames: `c f h w`, -1..1, of 8 bits where they come from a store.
        motion: `c m h w`, -1..1, the last frames unrounded, for the window that follows.
    """

    frames: Tensor
    motion: Tensor


class NoStore:
    """A store that keeps nothing: every window is made, and its frames are handed on unrounded."""

    def load(self, index: int, shape: tuple[int, int, int]) -> FinishedWindow | None:
        """None."""

    def save(self, index: int, frames: Tensor, num_motion: int) -> FinishedWindow:
        """The window itself."""
        return FinishedWindow(frames, last_frames(frames, num_motion))

    @property
    def is_empty(self) -> bool:
        """It is."""
        return True

    def part(self, output: Path) -> Path:
        """The file that grows while `output` is made: beside it, under a name that nothing has yet."""
        return unused_path(output.parent, f"{output.stem[:MAX_STEM]}.{PART}", output.suffix)

    def clear(self) -> None:
        """Nothing to forget."""

    def discard(self) -> None:
        """Nothing to remove."""


class WindowStore:
    """The finished windows of one run, in a folder that its inputs name.

    A window is two files: `<index>.mkv`, its frames in lossless FFV1, and `<index>.safetensors`, its motion frames, its
    key and a checksum of all of it. They are renamed into place when they are whole, the second last, so a pair is a
    finished window. Two processes may work on the same run: they write the same. What the disk refuses is not kept, and
    the run goes on.

    Args:
        root: the folder of all runs; what else lies there is left alone.
        keys: of the run and of its windows.
        limit_bytes: what all runs together may take. Other runs go first, the oldest before the others.

    Raises:
        ConfigError: the folder cannot be used.
    """

    def __init__(self, root: Path, keys: RunKeys, limit_bytes: int = LIMIT_BYTES):
        self._root, self.folder, self._limit_bytes = Path(root), Path(root) / keys.run, limit_bytes
        self._keys = keys
        self._is_full = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.touch()
            total = self._total_bytes = _drop_oldest(self._root, limit_bytes, keep=self.folder)
        except OSError as error:
            raise ConfigError(
                f"The folder of unfinished runs {self._root} cannot be used ({error.strerror or error}). Choose "
                f"one that can be written to, or turn resuming off."
            ) from error
        if total:
            logger.info("Unfinished runs take %.2f of at most %.0f GB in %s.", total / GB, limit_bytes / GB, self._root)

    @property
    def is_empty(self) -> bool:
        """No window of the run is stored."""
        return not any(self.folder.glob("*.safetensors"))

    def part(self, output: Path) -> Path:
        """The file that grows while `output` is made: it stays as long as the windows that it is made of."""
        return self.folder / f"{PART}{output.suffix}"

    def load(self, index: int, shape: tuple[int, int, int]) -> FinishedWindow | None:
        """The finished window number `index` of `shape` (f h w); None where there is none, or a damaged one."""
        video, motion = self._paths(index)
        if not motion.exists():
            return None
        try:
            finished = _read(video, motion, self._keys.windows[index], shape)
        except _OtherWindow:
            logger.info("Window %d in %s was made from another prompt and is made again.", index + 1, self.folder)
            return None
        except (OSError, ValueError, SafetensorError) as error:
            logger.warning("Window %d in %s is damaged (%s) and is made again.", index + 1, self.folder, error)
            return None
        logger.info("Window %d is already finished; it is read from %s.", index + 1, video)
        return finished

    def save(self, index: int, frames: Tensor, num_motion: int) -> FinishedWindow:
        """Writes a window (`c f h w`, -1..1) and returns it as a later run would read it."""
        pictures = _to_bytes(frames)
        finished = FinishedWindow(_to_float(pictures), last_frames(frames, num_motion))
        if not self._is_full:
            self._keep(index, pictures, finished.motion)
        return finished

    def clear(self) -> None:
        """Forgets the windows that an earlier run has left, so that all are made again."""
        self.discard()
        self.folder.mkdir(parents=True, exist_ok=True)

    def discard(self) -> None:
        """Removes the run's files; the video is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _keep(self, index: int, pictures: np.ndarray, motion: Tensor) -> None:
        video_path, motion_path = self._paths(index)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)  # another process may have dropped it
            with atomic_write(video_path) as path:
                _write_lossless(path, pictures)
            key = self._keys.windows[index]
            metadata = {"key": key, "checksum": _checksum(key, index, pictures, motion)}
            with atomic_write(motion_path) as path:
                save_file({"motion": motion}, path, metadata)
            self._total_bytes += video_path.stat().st_size + motion_path.stat().st_size
            if self._total_bytes > self._limit_bytes:  # by what this run has added to what it found
                self._total_bytes = _drop_oldest(self._root, self._limit_bytes, keep=self.folder)
            self._is_full = self._total_bytes > self._limit_bytes
            reason = f"{self._total_bytes / GB:.1f} GB are used, {self._limit_bytes / GB:.1f} are allowed"
        except (OSError, SafetensorError, FFmpegError) as error:
            self._is_full, reason = True, (isinstance(error, OSError) and error.strerror) or str(error)
        if self._is_full:
            logger.warning("No more windows are kept in %s: %s. The run goes on.", self.folder, reason)

    def _paths(self, index: int) -> tuple[Path, Path]:
        return self.folder / f"{index:04d}.mkv", self.folder / f"{index:04d}.safetensors"


def last_frames(frames: Tensor, num_frames: int) -> Tensor:
    """The last of `c f h w` in memory of their own: a view would hold all of them."""
    return frames[:, -num_frames:].clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class RunKeys:
    """The identity of a run, and of each of its windows: a window's includes those of all before it.

    A change that only later windows see, such as another prompt for the third, leaves the earlier ones as they are.
    """

    run: str
    windows: tuple[str, ...]

    @classmethod
    def of(cls, parts: Sequence[object], window_parts: Iterable[object]) -> RunKeys:
        """From what all windows depend on, and what each of them depends on besides."""
        run, keys = run_key(*parts), []
        for part in window_parts:
            keys.append(run_key(keys[-1] if keys else run, part))
        return cls(run, tuple(keys))


def run_key(*parts: object) -> str:
    """A name for a run, from everything that its frames depend on: tensors, modules, configurations, text."""
    digest = hashlib.sha256(f"{FORMAT}".encode())
    for part in parts:
        _feed(digest, part)
    return digest.hexdigest()[:32]


def fingerprint(module: nn.Module) -> str:
    """Tells two networks apart by their layers, and by the names, shapes, types and `SAMPLES` values of each weight."""
    digest = hashlib.sha256()
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.ParameterDict):  # which tells of the device
            digest.update(f"{name} {type(layer).__name__} {layer.extra_repr()}".encode())
    for name, tensor in module.state_dict().items():
        flat = tensor.detach().flatten()
        stride = max(1, flat.numel() // SAMPLES)
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(flat[::stride][: SAMPLES + 1].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _feed(digest: hashlib._Hash, part: object) -> None:
    if isinstance(part, nn.Module):
        digest.update(fingerprint(part).encode())
    elif isinstance(part, Tensor):
        digest.update(f"{tuple(part.shape)}{part.dtype}".encode())
        digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    elif isinstance(part, tuple | list):
        digest.update(f"[{len(part)}".encode())
        for item in part:
            _feed(digest, item)
    else:
        digest.update(repr(part).encode() + b"\0")


def _to_bytes(frames: Tensor) -> np.ndarray:
    return rearrange(to_uint8(frames).cpu(), "c f h w -> f h w c").contiguous().numpy()


def _to_float(pictures: np.ndarray) -> Tensor:
    return rearrange(from_uint8(torch.from_numpy(pictures)), "f h w c -> c f h w").contiguous()


class _OtherWindow(Exception):
    """A whole window, made from other inputs."""


def _read(video: Path, motion: Path, key: str, shape: tuple[int, int, int]) -> FinishedWindow:
    """A window from its two files; `ValueError` where they are not what was written."""
    with safe_open(check_regular(motion, ImageError), "pt") as file:
        frames, metadata = file.get_tensor("motion"), file.metadata() or {}
    pictures = _read_lossless(video)
    index = int(motion.stem)
    if _checksum(metadata.get("key", ""), index, pictures, frames) != metadata.get("checksum"):
        raise ValueError("its checksum is another")
    if pictures.shape[:3] != shape or frames.shape[2:] != shape[1:]:
        raise ValueError(f"its frames are {pictures.shape[:3]}, not {shape}")
    if metadata.get("key") != key:
        raise _OtherWindow
    return FinishedWindow(_to_float(pictures), frames)


def _checksum(key: str, index: int, pictures: np.ndarray, motion: Tensor) -> str:
    """Over the window's key and place too: files that were exchanged are no windows of this run."""
    return run_key(key, index, torch.from_numpy(pictures), motion)


def _read_lossless(path: Path) -> np.ndarray:
    with open_container(path, "a window", ImageError, "It is none.") as container:
        streams = moving_pictures(container)
        if len(streams) != 1:
            raise ValueError(f"it holds {len(streams)} pictures, not one")
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(streams[0])])


def _write_lossless(path: Path, pictures: np.ndarray) -> None:
    reformatter = VideoReformatter()
    with av.open(f"file:{path.absolute()}", "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = pictures.shape[1], pictures.shape[2], "bgr0"
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(reformatter.reformat(frame, format="bgr0")))
        container.mux(stream.encode())


def kept_bytes(root: Path) -> int:
    """Bytes of all runs below `root`."""
    return sum(run.num_bytes for run in _runs(root)) if root.is_dir() else 0


def _drop_oldest(root: Path, limit_bytes: int, keep: Path) -> int:
    """Removes other runs, the oldest first, until the rest is within the limit; returns what is left.

    Only what this module may have written is counted and removed, whatever else the user has in `root`.
    """
    runs = sorted(_runs(root), key=lambda run: run.changed_s)
    total = sum(run.num_bytes for run in runs)
    for run in runs:
        if total > limit_bytes and run.folder != keep:
            logger.info(
                "Removing the unfinished run %s (%.1f GB) to stay within the limit.", run.folder, run.num_bytes / GB
            )
            shutil.rmtree(run.folder, ignore_errors=True)
            total -= run.num_bytes
    return total


@dataclass(frozen=True)
class _KeptRun:
    folder: Path
    changed_s: float
    num_bytes: int


def _runs(root: Path) -> Iterator[_KeptRun]:
    """The folders below `root` that are named like runs and hold nothing but windows."""
    for folder in root.iterdir():
        if not RUN_NAME.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
            continue
        try:
            files = list(folder.iterdir())
            if all(WINDOW_FILE.fullmatch(file.name) for file in files):
                yield _KeptRun(folder, folder.stat().st_mtime, sum(file.stat().st_size for file in files))
        except FileNotFoundError:  # another process has just finished it
            continue
