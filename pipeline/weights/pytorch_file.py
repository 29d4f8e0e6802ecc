"""PyTorch's own files (`.pth`, `.pt`, `.bin`): pickles, of which nothing is run but the building of tensors."""

from __future__ import annotations

import pickle
import pickletools
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from torch import Tensor

from ..errors import WeightsError
from .headers import HeaderReader
from .source import Source, TensorSource

SAFE_PICKLE_TORCH = (2, 6)  # before it, a prepared file could run code in spite of weights_only
WRAPPED_STATES = ("state_dict", "model_state", "model", "module", "generator")
PICKLE_BYTES = 2**24  # of the pickles, and of a zip's directory; a 14B model's take 0.5 MB
PICKLE_OPERATIONS = 2**18  # a tensor takes 32
LEGACY_PICKLES = 5  # before the numbers of torch's older format: its sign, version, system, tensors, storage keys
TENSOR_GLOBALS = re.compile(r"torch(\.\w+)* \w+|collections OrderedDict")
DAMAGED_PICKLE = (  # the errors of torch, zipfile and pickletools for a file that is cut off or altered
    RuntimeError, EOFError, OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError,
    AssertionError, MemoryError, struct.error, BadZipFile,
)  # fmt: skip


def read_pytorch(path: Path) -> Source:
    """The named tensors of a PyTorch file, mapped where its format allows it.

    Raises:
        WeightsError: it is damaged, holds no tensors, or would have to run code.
    """
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < SAFE_PICKLE_TORCH:
        raise WeightsError(f"{path.name} can only be opened safely by PyTorch 2.6 or newer; convert it to safetensors.")
    try:
        _check_pickles(path)
        state = _load(path)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{path.name} needs to run code to open; convert it to safetensors first.") from error
    except DAMAGED_PICKLE as error:
        raise WeightsError(f"{path.name} is incomplete or no PyTorch weights file; download it again.") from error
    tensors = _tensors(state, path.name)
    if _stored_bytes(tensors.values()) > path.stat().st_size:  # a tensor may be made of a size alone
        raise WeightsError(f"{path.name} is incomplete or no PyTorch weights file; download it again.")
    return TensorSource(path, tensors)


def _check_pickles(path: Path) -> None:
    """Reads the pickles' operations without carrying them out.

    Raises:
        WeightsError: parts of a zip are compressed: such numbers cannot be mapped, such a pickle may have any size.
        pickle.UnpicklingError: they name something else than tensors.
        ValueError: they are too large.
    """
    with HeaderReader(path, PICKLE_BYTES) as file:
        if not file.peek(2).startswith(b"PK"):
            for _ in range(LEGACY_PICKLES):
                _check_operations(file)
            return
        archive = ZipFile(file)
        for member in archive.infolist():
            if member.compress_type != ZIP_STORED:
                raise WeightsError(f"{path.name} is a compressed archive, which PyTorch does not write; unpack it.")
            if "/data/" not in member.filename and member.file_size > PICKLE_BYTES:
                raise ValueError(f"{member.filename} has {member.file_size} bytes")
            if member.filename.endswith(".pkl"):
                with archive.open(member) as content:
                    _check_operations(content)


def _check_operations(content: IO[bytes]) -> None:
    for count, (operation, argument, _) in enumerate(pickletools.genops(content)):
        if count > PICKLE_OPERATIONS:
            raise ValueError("a pickle of too many values")
        if operation.name == "GLOBAL" and not TENSOR_GLOBALS.fullmatch(str(argument)):
            raise pickle.UnpicklingError(str(argument))


def _load(path: Path) -> Any:
    """Torch maps a zip, but not its older format, nor a zip whose ending it takes for another format's."""
    with path.open("rb") as file:
        if file.read(2) == b"PK" and path.suffix not in (".safetensors", ".sft"):
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


def _tensors(state: Any, name: str) -> dict[str, Tensor]:
    for wrapper in WRAPPED_STATES:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    values = state.items() if isinstance(state, Mapping) else ()
    tensors = {key: value for key, value in values if isinstance(key, str) and _is_plain(value)}
    if not tensors:
        raise WeightsError(f"{name} holds no named tensors; choose a file of weights.")
    return tensors


def _stored_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the numbers behind tensors, of which several may share some."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _is_plain(value: Any) -> bool:
    """True for a tensor whose numbers are all in the file: neither sparse, nor one number spread out to many."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_meta:
        return False
    return value.nbytes <= value.untyped_storage().nbytes()
