"""Opens whatever holds weights: safetensors, GGUF, `.pth`, shards, folders. The first bytes decide, not the ending."""

from __future__ import annotations

import math
import os
import pickle
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import WeightsError
from .gguf import read_gguf
from .source import DTYPES, Entry, Loaded, MappedFile, Source, Together, parse_object, readable_size

WEIGHTS_ENDINGS = (".safetensors", ".sft", ".gguf", ".bin", ".pth", ".pt", ".ckpt")  # in the order of preference
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<ending>\.\w+)$")
OWN_FOLDER = re.compile(r"(model|pytorch_model|diffusion_pytorch_model|adapter_model)\b")  # a library's names of files
BLOCK_FILE = re.compile(r"block_\d+\.safetensors$")
WRAPPED_STATES = ("state_dict", "model_state", "model", "module", "generator")
DAMAGED_PICKLE = (  # what torch raises for a file that is cut off or altered
    RuntimeError, EOFError, OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError,
    AssertionError, MemoryError, struct.error,
)  # fmt: skip
SAFE_PICKLE_TORCH = (2, 6)  # before it, a prepared file could run code in spite of weights_only


def open_source(path: Path | str, subfolder: str = "") -> Source:
    """What is at `path`: a file, any one of several shards, their index, or a folder.

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
        return _open_folder(path / subfolder if (path / subfolder).is_dir() else path, chosen=path)
    if path.name.endswith(".index.json"):
        return _open_index(path)
    if SHARD.match(path.name):
        return _open_shards(path)
    if BLOCK_FILE.match(path.name):
        return _open_folder(path.parent, chosen=path)
    return _with_config(open_file(path), path)


def settings_beside(path: Path, name: str) -> dict[str, Any]:
    """The JSON object in the file `name` of a model's folder; empty without one.

    Beside a file that lies among others it may be anybody's, and is left alone: it counts in a folder that was chosen
    as a whole, beside a file with a library's own name, and beside the only one.

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
        return parse_object(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{file} is damaged: it holds no JSON object; download it again.") from error


def open_file(path: Path) -> Source:
    """One weights file, known by its first bytes."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise WeightsError(f"{path} cannot be opened ({error.strerror}); choose another file.") from error
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
        return _read_pickle(path)
    raise WeightsError(f"{path.name} is no weights file: it is neither safetensors, GGUF nor a PyTorch file.")


def _read_safetensors(path: Path) -> Source:
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > size - 8:
            raise WeightsError(f"{path.name} is incomplete: it ends inside its header; download it again.")
        header = file.read(length)
    try:
        fields = parse_object(header)
        metadata = dict(fields.pop("__metadata__", None) or {})
        entries = {key: _safetensors_entry(path, field, 8 + length) for key, field in fields.items()}
    except WeightsError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
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


def _read_pickle(path: Path) -> Source:
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < SAFE_PICKLE_TORCH:
        raise WeightsError(f"{path.name} can only be opened safely by PyTorch 2.6 or newer; convert it to safetensors.")
    try:
        state = _load_pickle(path)
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{path.name} needs to run code to open; convert it to safetensors first.") from error
    except DAMAGED_PICKLE as error:
        raise WeightsError(f"{path.name} is incomplete or no PyTorch weights file; download it again.") from error
    return Loaded(path, _tensors(state, path.name))


def _load_pickle(path: Path) -> Any:
    """Maps what can be mapped: not torch's older format, nor what a wrong ending would lead torch astray with."""
    with path.open("rb") as file:
        if file.read(2) == b"PK" and path.suffix not in (".safetensors", ".sft"):
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


def _tensors(state: Any, name: str) -> dict[str, Tensor]:
    for wrapper in WRAPPED_STATES:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    named = state.items() if isinstance(state, Mapping) else ()
    tensors = {key: value for key, value in named if isinstance(key, str) and _is_plain(value)}
    if not tensors:
        raise WeightsError(f"{name} holds no named tensors; choose a file of weights.")
    return tensors


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor with numbers, one after the other."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta


def _open_index(path: Path) -> Source:
    try:
        names = sorted(set(parse_object(path.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name or not name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path.name} is no index of shards; choose the weights themselves.") from error
    if outside:
        raise WeightsError(
            f"{path.name} names {outside[0]!r}, which is no file beside it; choose the weights themselves."
        )
    if not names:
        raise WeightsError(f"{path.name} names no shards; choose the weights themselves.")
    _check_present(path.parent, names)
    return _with_config(Together(path, [open_file(path.parent / name) for name in names]), path.parent)


def _open_shards(path: Path) -> Source:
    match = SHARD.match(path.name)
    count = int(match["count"])
    names = [f"{match['stem']}-{number:05d}-of-{count:05d}{match['ending']}" for number in range(1, count + 1)]
    _check_present(path.parent, names)
    return _with_config(Together(path, [open_file(path.parent / name) for name in names]), path.parent)


def _check_present(folder: Path, names: list[str]) -> None:
    missing = [number for number, name in enumerate(names, start=1) if not os.path.exists(folder / name)]
    if missing:
        numbers = " and ".join(filter(None, (", ".join(map(str, missing[:-1])), str(missing[-1]))))
        shards, are = ("Shards", "are") if len(missing) > 1 else ("Shard", "is")
        raise WeightsError(
            f"{shards} {numbers} of {len(names)} {are} missing in {folder} (the first: {names[missing[0] - 1]})."
        )


def _open_folder(folder: Path, chosen: Path) -> Source:
    files = _weights_files(folder)
    indices = sorted(folder.glob("*.index.json"), key=lambda path: "safetensors" not in path.name)
    shard = next((path for path in files if SHARD.match(path.name)), None)
    if indices:
        return _open_index(indices[0])
    if shard is not None:
        return _open_shards(shard)
    if any(BLOCK_FILE.match(path.name) for path in files):
        return _with_config(Together(chosen, [open_file(path) for path in files]), folder)
    return _with_config(open_file(_only_one(files, chosen)), folder)


def _weights_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.endswith(WEIGHTS_ENDINGS))


def _only_one(files: list[Path], folder: Path) -> Path:
    for ending in WEIGHTS_ENDINGS:
        found = [path for path in files if path.name.endswith(ending)]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(path.name for path in found[:3])
            raise WeightsError(f"{folder} holds {len(found)} weights files ({names}, ...); choose one of them.")
    raise WeightsError(f"{folder} holds no weights file; choose another folder or a file.")


def _with_config(source: Source, path: Path) -> Source:
    """Adds the model's own `config.json`; `path` is its file or its folder."""
    source.config = settings_beside(path, "config.json")
    return source
