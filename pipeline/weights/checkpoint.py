"""Opens whatever holds weights: safetensors, GGUF, `.pth`, shards, folders. The first bytes decide, not the ending."""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import WeightsError
from .gguf import read_gguf
from .headers import HEADER_BYTES, HeaderReader, parse_object, read_object
from .pytorch_file import read_pytorch
from .source import DTYPES, Entry, MappedFile, MultiFileSource, Source, readable_size

WEIGHTS_ENDINGS = (".safetensors", ".sft", ".gguf", ".bin", ".pth", ".pt", ".ckpt")  # in the order of preference
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<ending>\.\w+)$")
OWN_FOLDER = re.compile(r"(model|pytorch_model|diffusion_pytorch_model|adapter_model)\b")  # a library's names of files
BLOCK_FILE = re.compile(r"block_\d+\.safetensors$")
START_BYTES = 512  # enough to know any format


def open_source(path: Path | str, subfolder: str = "") -> Source:
    """The weights at `path`: a file, any one of several shards, their index, or a folder.

    Only headers are read, but for `.pth` files, whose tensors torch maps.

    Args:
        path: file or folder.
        subfolder: where the part lies inside a diffusers folder, such as "transformer".

    Raises:
        WeightsError: there is nothing, or it is damaged, or no weights file, or it would have to run code.
    """
    path = Path(path).expanduser()
    if not os.path.exists(path):  # which, unlike Path's, bears names of any length
        raise WeightsError(f"{path.absolute()} does not exist; choose a weights file or a folder of them.")
    if path.is_dir():
        return _open_folder(path / subfolder if (path / subfolder).is_dir() else path, path)
    if path.name.endswith(".index.json"):
        return _open_index(path)
    if SHARD.match(path.name):
        return _open_shards(path)
    if BLOCK_FILE.match(path.name):
        return _open_folder(path.parent, path)
    return _with_config(open_file(path), path)


def folder_settings(path: Path, name: str) -> dict[str, Any]:
    """The JSON object in the file `name` of a model's folder; empty without one.

    In a folder of several models it may be any of theirs, and is left alone: it counts in a folder that was chosen as a
    whole, for a file with a library's own name, and for the only one.

    Raises:
        WeightsError: it holds no object.
    """
    folder = path if path.is_dir() else path.parent
    file = folder / name
    if not file.exists():
        return {}
    if path != folder and not OWN_FOLDER.match(path.name) and len(_weights_files(folder)) > 1:
        return {}
    try:
        return read_object(file)
    except WeightsError:
        raise
    except ValueError as error:
        raise WeightsError(f"{file} is damaged: it holds no JSON object; download it again.") from error


def open_file(path: Path) -> Source:
    """The tensors of one weights file, whose format its first bytes tell.

    Raises:
        WeightsError: it is no regular file, damaged, no weights file, or would have to run code.
    """
    with HeaderReader(path) as file:
        start = file.read(START_BYTES)
    if not start:
        raise WeightsError(f"{path.name} is empty; download it again.")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(
            f"{path.name} is a Git-LFS pointer ({readable_size(path.stat().st_size)}), not the weights; "
            f"download the file itself."
        )
    if start.lstrip()[:5].lower() in (b"<!doc", b"<html", b"<?xml"):
        raise WeightsError(f"{path.name} is a web page, not the weights; download the file itself.")
    if start.startswith(b"GGUF"):
        return read_gguf(path)
    if start[8:9] == b"{" and start[4:8] == bytes(4):  # a header's length comes first, and may look like a pickle
        return _read_safetensors(path)
    if start.startswith(b"PK") or start[:1] == b"\x80":
        return read_pytorch(path)
    raise WeightsError(
        f"{path.name} is no weights file: it is neither safetensors, GGUF nor a PyTorch file; choose one of these."
    )


def _read_safetensors(path: Path) -> Source:
    with HeaderReader(path, 8 + HEADER_BYTES) as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > file.size - 8:
            raise WeightsError(f"{path.name} is incomplete: it ends inside its header; download it again.")
        if length > HEADER_BYTES:
            raise WeightsError(
                f"{path.name} is damaged: its header of {readable_size(length)} is larger than the format's limit of "
                f"{readable_size(HEADER_BYTES)}; download it again."
            )
        header = file.read(length)
    try:
        fields = parse_object(header)
        metadata = dict(fields.pop("__metadata__", None) or {})
        entries = {key: _safetensors_entry(path, field, 8 + length) for key, field in fields.items()}
    except WeightsError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, MemoryError) as error:
        raise WeightsError(f"{path.name} is damaged: its header cannot be read; download it again.") from error
    return MappedFile(path, entries, metadata)


def _safetensors_entry(path: Path, field: Mapping[str, Any], data_start: int) -> Entry:
    shape, (begin, end) = tuple(field["shape"]), field["data_offsets"]
    if field["dtype"] not in DTYPES:
        raise WeightsError(
            f"{path.name} has tensors of type {field['dtype']}, which is not supported; use fp8 or GGUF."
        )
    if any(type(number) is not int or number < 0 for number in (*shape, begin, end)):
        raise ValueError(f"{shape} and {begin} to {end} are no sizes")
    if end - begin != math.prod(shape) * DTYPES[field["dtype"]].itemsize:
        raise ValueError(f"{shape} of {field['dtype']} cannot lie in bytes {begin} to {end}")
    return Entry(shape, field["dtype"], end - begin, data_start + begin)


def _open_index(path: Path) -> Source:
    try:
        names = sorted(set(read_object(path)["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name or not name]
    except WeightsError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path.name} is no index of shards; choose the weights themselves.") from error
    if outside:
        raise WeightsError(
            f"{path.name} names {outside[0]!r}, which is no file beside it; choose the weights themselves."
        )
    if not names:
        raise WeightsError(f"{path.name} names no shards; choose the weights themselves.")
    return _open_parts(path, names)


def _open_shards(path: Path) -> Source:
    stem, _, count, ending = SHARD.findall(path.name)[0]
    names = [f"{stem}-{number:05d}-of-{count}{ending}" for number in range(1, int(count) + 1)]
    return _open_parts(path, names)


def _open_parts(path: Path, names: list[str]) -> Source:
    """Files in the folder of `path` as one source, which people know by that name."""
    folder = path.parent
    missing = [number for number, name in enumerate(names, start=1) if not os.path.exists(folder / name)]
    if missing:
        numbers = " and ".join(filter(None, (", ".join(map(str, missing[:-1])), str(missing[-1]))))
        shards, are = ("Shards", "are") if len(missing) > 1 else ("Shard", "is")
        raise WeightsError(
            f"{shards} {numbers} of {len(names)} {are} missing in {folder} (the first: {names[missing[0] - 1]})."
        )
    return _with_config(MultiFileSource(path, [open_file(folder / name) for name in names]), folder)


def _open_folder(folder: Path, path: Path) -> Source:
    """The model in `folder`, which people know as `path`."""
    files = _weights_files(folder)
    indices = sorted(folder.glob("*.index.json"), key=lambda path: "safetensors" not in path.name)
    shard = next((file for file in files if SHARD.match(file.name)), None)
    if indices:
        return _open_index(indices[0])
    if shard is not None:
        return _open_shards(shard)
    if any(BLOCK_FILE.match(file.name) for file in files):
        return _with_config(MultiFileSource(path, [open_file(file) for file in files]), folder)
    return _with_config(open_file(_only_one(files, path)), folder)


def _weights_files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.name.endswith(WEIGHTS_ENDINGS))
    except OSError as error:
        raise WeightsError(f"{folder} cannot be opened ({error.strerror}); choose another folder.") from error


def _only_one(files: list[Path], folder: Path) -> Path:
    for ending in WEIGHTS_ENDINGS:
        candidates = [path for path in files if path.name.endswith(ending)]
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            names = ", ".join(path.name for path in candidates[:3])
            raise WeightsError(f"{folder} holds {len(candidates)} weights files ({names}, ...); choose one of them.")
    raise WeightsError(f"{folder} holds no weights file; choose another folder or a file.")


def _with_config(source: Source, path: Path) -> Source:
    """`source` with the model's own `config.json`; `path` is its file or its folder."""
    source.config = folder_settings(path, "config.json")
    return source
