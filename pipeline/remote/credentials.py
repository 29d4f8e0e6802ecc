"""The key to fal: its sources and its form."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..errors import RemoteError
from .redaction import Redactor

KEY_FILE = "fal_key"
MAX_FILE_BYTES = 4096
_DECORATION = re.compile(r"^(?:(?:export\s+)?FAL_KEY\s*=|Key\s)\s*", re.IGNORECASE)
_WELL_FORMED = re.compile(r"[\x21-\x7e]{8,512}")


@dataclass(frozen=True)
class Key:
    """A key that has been checked. Neither its `repr` nor its `str` shows it.

    Attributes:
        value: the Authorization header's.
        source: the place that it comes from, for messages.
    """

    value: str = field(repr=False)
    source: str

    @property
    def fingerprint(self) -> str:
        """Eight hex digits that tell one account's jobs from another's and cannot be turned back."""
        return hashlib.sha256(self.value.encode()).hexdigest()[:8]

    @cached_property
    def redact(self) -> Redactor:
        """Takes the key out of texts, and the passwords of addresses with it."""
        return Redactor(self.value)


def find_key(private: Path, environ: Mapping[str, str] = os.environ) -> Key:
    """The key from `FAL_KEY`, from `FAL_KEY_ID` and `FAL_KEY_SECRET`, or from the file `fal_key` in `private`.

    Raises:
        RemoteError: there is none, or it has not the form of one. The message names the source, never the value.
    """
    if "FAL_KEY" in environ:
        return _check(environ["FAL_KEY"], "the environment variable FAL_KEY")
    if "FAL_KEY_ID" in environ and "FAL_KEY_SECRET" in environ:
        halves = (_strip_decoration(environ[name]) for name in ("FAL_KEY_ID", "FAL_KEY_SECRET"))
        return _check(":".join(halves), "the environment variables FAL_KEY_ID and FAL_KEY_SECRET")
    path = private / KEY_FILE
    if not os.path.lexists(path):
        raise RemoteError(
            f"No key for fal was found. Set the environment variable FAL_KEY, for ComfyUI before it starts, or write "
            f"the key into {path} and run: chmod 600 {path}. Take a key of API scope from fal.ai/dashboard/keys."
        )
    return _check(_read_private(path), f"the file {path}")


def _read_private(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise RemoteError(f"The key file {path} is no file: remove it, and write the key into a file of this name.")
        if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
            raise RemoteError(f"The key file can be read by other users of this machine. Run: chmod 600 {path}")
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES).decode("utf-8", errors="replace")
    except OSError as error:
        raise RemoteError(
            f"The key file {path} cannot be read ({error.strerror}). Give it back to the user that runs this, with "
            f"mode 600, or set FAL_KEY."
        ) from None


def _strip_decoration(value: str) -> str:
    """A key without the white space, quotes, `Key ` and `FAL_KEY=` that come along when it is copied."""
    return _DECORATION.sub("", value.strip().strip("\"'").strip()).strip().strip("\"'").strip()


def _check(value: str, source: str) -> Key:
    key = _strip_decoration(value)
    if not _WELL_FORMED.fullmatch(key):
        raise RemoteError(
            f"What {source} holds is not a key of fal: 8 to 512 plain characters without spaces are wanted, "
            f"got {len(key)} characters. Copy it again from fal.ai/dashboard/keys."
        )
    return Key(key, source)


def private_directory(path: Path) -> Path:
    """`path`, made if need be, and closed to other users of the machine."""
    path.mkdir(parents=True, exist_ok=True)
    if os.name == "posix":
        path.chmod(0o700)
    return path
