"""The manifest of a batch: a file of JSON lines, each a clip by the names of the command line."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from ..__main__ import parse_options
from ..errors import ConfigError
from ..media.files import open_regular

ID_PATTERN = re.compile(r"\w([\w .+-]{0,98}\w)?")  # a file's name everywhere
OWN_OPTIONS = {  # a batch chooses these for its lines
    "output", "resume_folder", "restart", "device", "devices", "verbose", "remote", "ledger_folder",
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One clip of a batch; processes exchange it, so it holds plain data.

    Attributes:
        number: of its line, from 1.
        id: the name of its files.
        options: as they stand in the line, by the command line's names.
        folder: where relative paths count from.
    """

    number: int
    id: str
    options: dict[str, Any]
    folder: Path

    @cached_property
    def args(self) -> argparse.Namespace:
        """The options of the command line, with absolute paths.

        Raises:
            ConfigError: a value is none that its option takes.
        """
        args = parse_options([text for name, value in self.options.items() for text in _arguments(name, value)])
        for name, value in vars(args).items():
            if isinstance(self.options.get(name), list) and not isinstance(value, list):
                raise ConfigError(f"{name} takes one value, got {len(self.options[name])}. Give it without brackets.")
            setattr(args, name, [*map(self._absolute, value)] if isinstance(value, list) else self._absolute(value))
        args.lora = [str(self._absolute(Path(lora))) for lora in args.lora]
        return args

    @cached_property
    def digest(self) -> str:
        """Tells the line and the sizes of its files from others; the order of its keys, and its id, do not count."""
        values = [value for name in self.options for value in _as_list(getattr(self.args, name))]
        sizes = [path.stat().st_size for path in values if isinstance(path, Path) and path.is_file()]
        return hashlib.sha256(json.dumps([self.options, sizes], sort_keys=True).encode()).hexdigest()[:32]

    def _absolute(self, value: Any) -> Any:
        """A path below the manifest's folder, or where it is absolute; anything else as it is."""
        return self.folder / value.expanduser() if isinstance(value, Path) else value


@dataclass(frozen=True)
class InvalidLine:
    """A line of a manifest that is no job; `error` says why."""

    number: int
    id: str
    error: str


class Manifest:
    """Reader of a manifest that may grow while it is read; empty lines are skipped.

    Args:
        path: the file.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """

    def __init__(self, path: Path):
        self._path, self._folder = path, path.absolute().parent
        self._offset = self._number = 0
        self._line_numbers: dict[str, int] = {}  # by id, as a file system without upper case sees it
        self._rest()

    def read(self, *, is_final: bool) -> Iterator[Job | InvalidLine]:
        """The lines that were added since the last call.

        Args:
            is_final: takes a last line without its line break too, which somebody may still be writing.
        """
        text = self._rest()
        whole, _, started = text.rpartition(b"\n")
        lines = whole.split(b"\n") if whole else []
        self._offset += len(text) - len(started)
        if is_final and started:
            lines.append(started)
            self._offset += len(started)
        for line in lines:
            self._number += 1
            if line.strip(b"\xef\xbb\xbf \t\r"):
                yield self._parse(line)

    def _rest(self) -> bytes:
        with open_regular(self._path) as file:
            file.seek(self._offset)
            return file.read()

    def _parse(self, line: bytes) -> Job | InvalidLine:
        number, id_ = self._number, str(self._number)
        try:
            options = _json_object(line)
            id_ = self._take_id(options.pop("id", self._number))
            _check_names(options)
            job = Job(number, id_, options, self._folder)
            _ = job.args  # a value of the wrong kind is said here
        except ConfigError as error:
            return InvalidLine(number, id_, str(error))
        return job

    def _take_id(self, value: Any) -> str:
        id_ = str(value)
        if not isinstance(value, str | int) or not ID_PATTERN.fullmatch(id_):
            raise ConfigError(
                f"An id names files: up to 100 letters, digits, spaces and . + - _, a letter or digit first and last. "
                f"Got {value!r}."
            )
        first = self._line_numbers.setdefault(id_.casefold(), self._number)
        if first != self._number:
            raise ConfigError(f"Line {first} has the id {id_} already. Give each line its own.")
        return id_


@cache
def _names() -> set[str]:
    """The command line's names that a line may use."""
    return vars(parse_options([])).keys() - OWN_OPTIONS


def _check_names(options: dict[str, Any]) -> None:
    own, unknown = options.keys() & OWN_OPTIONS, options.keys() - _names() - OWN_OPTIONS
    if own:
        raise ConfigError(f"{', '.join(sorted(own))}: the batch chooses this for all lines alike. Leave it out.")
    if unknown:
        names = ", ".join(sorted(_names()))
        raise ConfigError(f"There is no option {', '.join(sorted(unknown))}. The options are: id, {names}.")


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        options = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f'The line is no JSON ({error}). Write it as one object, such as {{"demo": true}}.') from None
    if not isinstance(options, dict):
        raise ConfigError(f"The line is no JSON object but {type(options).__name__}. Put it in braces.")
    return options


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    options = dict(pairs)
    if len(options) < len(pairs):
        raise ValueError("a name stands in it twice")
    return options


def _arguments(name: str, value: Any) -> Iterator[str]:
    """An option as it is typed: a flag for true, nothing for false and null, a list's values one by one."""
    option = f"--{name.replace('_', '-')}"
    for item in _as_list(value):
        if item is True:
            yield option
        elif item is not None and item is not False:
            yield f"{option}={','.join(map(str, item)) if isinstance(item, list) else item}"


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
