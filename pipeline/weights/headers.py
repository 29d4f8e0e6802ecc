"""Bounds on headers: a weights file, or a settings file in its folder, may be damaged or hostile.

Each length in a header is compared with a bound before memory is taken for it.
"""

from __future__ import annotations

import io
import json
import os
import stat
from pathlib import Path
from typing import Any

from ..errors import WeightsError

HEADER_BYTES = 100_000_000  # the limit of the safetensors format; a 14B model's header has 200 kB
HEADER_VALUES = 2**21  # tensors, list items, fields; the longest vocabulary, umT5's, takes 1.2 million
JSON_SEPARATORS = 2**20  # of values, each of which takes up to 250 bytes; a 14B model's header has 15,000


class HeaderReader(io.BufferedReader):
    """A file opened for its header alone: it gives at most `limit` bytes.

    Args:
        path: a regular file.
        limit: bytes that may be read of it.

    Raises:
        WeightsError: the path leads to no regular file, or may not be read.
    """

    def __init__(self, path: Path, limit: int = HEADER_BYTES):
        self.size = regular_file_size(path)
        try:
            super().__init__(io.FileIO(path))
        except OSError as error:
            raise WeightsError(f"{path} cannot be opened ({error.strerror}); choose another file.") from error
        self._remaining = limit

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes; without it all that follow.

        Raises:
            ValueError: they are more than the limit has left.
        """
        if size is None or not 0 <= size <= io.DEFAULT_BUFFER_SIZE:
            rest = max(0, self.size - self.tell())
            size = (
                rest if size is None or size < 0 else min(size, rest)
            )  # else the memory is taken before the end shows
        self._take(size)
        return super().read(size)

    def readline(self, size: int | None = -1, /) -> bytes:
        """A line, or what the limit has left of it."""
        line = super().readline(self._remaining)
        self._take(len(line))
        return line

    def _take(self, size: int) -> None:
        if size > self._remaining:
            raise ValueError(f"{size} bytes of a header that may have {self._remaining} more")
        self._remaining -= size


def regular_file_size(path: Path) -> int:
    """Bytes of the file at `path`. A pipe or a device would be read for ever.

    Raises:
        WeightsError: it is no regular file, or cannot be reached.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise WeightsError(f"{path} cannot be opened ({reason}); choose another file.") from error
    if not stat.S_ISREG(status.st_mode):
        raise WeightsError(f"{path} is not a regular file but {_file_kind(status.st_mode)}; choose another file.")
    return status.st_size


def _file_kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a settings file.

    Raises:
        WeightsError: it is no regular file.
        ValueError: it holds no object, or a huge one.
    """
    with HeaderReader(path) as file:
        return parse_object(file.read())


def parse_object(text: object) -> dict[str, Any]:
    """The JSON object in `text`, a string or bytes; a header may have a number or a list in their place.

    Raises:
        ValueError: it is no text, no JSON, nested beyond measure, of too many values, or no object.
    """
    if not isinstance(text, str | bytes):
        raise ValueError(f"JSON text was expected, not {type(text).__name__}")
    data = text.encode() if isinstance(text, str) else text
    if len(data) > HEADER_BYTES or sum(map(data.count, (b",", b"[", b"{"))) > JSON_SEPARATORS:
        raise ValueError("a header of too many values")
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object was expected, not {type(value).__name__}")
    return value
