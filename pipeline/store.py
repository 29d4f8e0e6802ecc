"""Keeps the finished windows of a run on disk, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

logger = logging.getLogger(__name__)

SAMPLES = 64  # values of each weight that its fingerprint looks at


@dataclass(frozen=True)
class FinishedWindow:
    """A window's frames as the video shows them, and the motion frames as they were.

    Attributes:
        frames: `c f h w`, -1..1, of 8 bits.
        motion: `c m h w`, -1..1, the last frames unrounded, for the window that follows.
    """

    frames: Tensor
    motion: Tensor


class WindowStore:
    """The finished windows of one run, in a folder that its inputs name.

    A window is two files: `<index>.mkv`, its frames in lossless FFV1, and `<index>.safetensors`, its motion frames.
    Both are renamed into place when they are whole, the second last, so what is found is finished.
    """

    def __init__(self, root: Path, key: str, limit_bytes: int = 50 * 10**9):
        self.folder = Path(root) / key
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.touch()
        _drop_oldest(Path(root), limit_bytes, keep=self.folder)

    def load(self, index: int) -> FinishedWindow | None:
        """The finished window number `index`, or None."""
        video, motion = self._paths(index)
        if not motion.exists():
            return None
        logger.info("Window %d is already finished; it is read from %s.", index + 1, video)
        with av.open(str(video)) as container:
            pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        return FinishedWindow(_to_float(np.stack(pictures)), load_file(motion)["motion"])

    def save(self, index: int, frames: Tensor, num_motion: int) -> FinishedWindow:
        """Writes a window (`c f h w`, -1..1) and returns it as a later run would read it."""
        video, motion = self._paths(index)
        pictures = _to_bytes(frames)
        unfinished = video.with_suffix(".part.mkv")
        _write_lossless(unfinished, pictures)
        _put(unfinished, video)
        finished = FinishedWindow(_to_float(pictures), frames[:, -num_motion:].contiguous())
        unfinished = motion.with_suffix(".part")
        save_file({"motion": finished.motion}, unfinished)
        _put(unfinished, motion)
        return finished

    def discard(self) -> None:
        """Removes the run's files; the video is written."""
        shutil.rmtree(self.folder)

    def _paths(self, index: int) -> tuple[Path, Path]:
        return self.folder / f"{index:04d}.mkv", self.folder / f"{index:04d}.safetensors"


def run_key(*parts: object) -> str:
    """A name for a run, from everything that its frames depend on: tensors, modules, configurations, text."""
    digest = hashlib.sha256()
    for part in parts:
        _feed(digest, part)
    return digest.hexdigest()[:32]


def fingerprint(module: nn.Module) -> str:
    """Tells two sets of weights apart by their names, shapes, types and `SAMPLES` values of each."""
    digest = hashlib.sha256()
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
        digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(part, tuple | list):
        digest.update(f"[{len(part)}".encode())
        for item in part:
            _feed(digest, item)
    else:
        digest.update(repr(part).encode() + b"\0")


def _to_bytes(frames: Tensor) -> np.ndarray:
    levels = (frames.clamp(-1, 1) + 1).mul(127.5).round().to(torch.uint8)
    return rearrange(levels.cpu(), "c f h w -> f h w c").contiguous().numpy()


def _to_float(pictures: np.ndarray) -> Tensor:
    return rearrange(torch.from_numpy(pictures).float() / 127.5 - 1, "f h w c -> c f h w").contiguous()


def _write_lossless(path: Path, pictures: np.ndarray) -> None:
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = pictures.shape[1], pictures.shape[2], "bgr0"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode())


def _put(unfinished: Path, path: Path) -> None:
    with unfinished.open("rb+") as file:
        os.fsync(file.fileno())
    unfinished.replace(path)


def _drop_oldest(root: Path, limit_bytes: int, keep: Path) -> None:
    """Removes other runs' folders, the oldest first, until what is left is within the limit."""
    folders = sorted((f for f in root.iterdir() if f.is_dir()), key=lambda folder: folder.stat().st_mtime)
    sizes = {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in folders}
    total = sum(sizes.values())
    for folder in folders:
        if total <= limit_bytes:
            break
        if folder != keep:
            logger.info(
                "Removing the unfinished run %s (%.1f GB) to stay within the limit.", folder, sizes[folder] / 1e9
            )
            shutil.rmtree(folder)
            total -= sizes[folder]
    if total:
        logger.info("Unfinished runs take %.2f GB in %s.", total / 1e9, root)
