"""The key to fal: where it comes from, whether it is one, and how to keep it out of every text."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import RemoteError

KEY_FILE = "fal_key"
_DECORATION = re.compile(r"^(?:(?:export\s+)?FAL_KEY\s*=|Key\s)\s*", re.IGNORECASE)
_WELL_FORMED = re.compile(r"[\x21-\x7e]{8,512}")


@dataclass(frozen=True)
class Key:
    """A key that has been checked. Neither its `repr` nor its `str` shows it.

    Attributes:
        value: what goes into the Authorization header.
        source: where it was found, for messages.
    """

    value: str = field(repr=False)
    source: str

    @property
    def fingerprint(self) -> str:
        """Eight hex digits that tell one account's jobs from another's and cannot be turned back."""
        return hashlib.sha256(self.value.encode()).hexdigest()[:8]

    def redact(self, text: str) -> str:
        """`text` without the key and without anything that stands where a key stands."""
        return re.sub(r"Key \S+", "Key ...", text.replace(self.value, "..."))


def find_key(private: Path, environ: Mapping[str, str] = os.environ) -> Key:
    """The key from `FAL_KEY`, from `FAL_KEY_ID` and `FAL_KEY_SECRET`, or from the file `fal_key` in `private`.

    Raises:
        RemoteError: there is none, or what is there is no key. The message names the source, never the value.
    """
    if "FAL_KEY" in environ:
        return _checked_key(environ["FAL_KEY"], "the environment variable FAL_KEY")
    if "FAL_KEY_ID" in environ and "FAL_KEY_SECRET" in environ:
        halves = (_strip_decoration(environ[name]) for name in ("FAL_KEY_ID", "FAL_KEY_SECRET"))
        return _checked_key(":".join(halves), "the environment variables FAL_KEY_ID and FAL_KEY_SECRET")
    path = private / KEY_FILE
    if not path.exists():
        raise RemoteError(
            f"No key for fal was found. Set the environment variable FAL_KEY before ComfyUI starts, or write the key "
            f"into {path} and run: chmod 600 {path}. Take a key of API scope from fal.ai/dashboard/keys."
        )
    return _checked_key(_read_private(path), f"the file {path}")


def _read_private(path: Path) -> str:
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise RemoteError(f"The key file can be read by other users of this machine. Run: chmod 600 {path}")
    return path.read_bytes().decode("utf-8", errors="replace")


def _strip_decoration(value: str) -> str:
    """Without what comes along when a key is copied: white space, quotes, `Key `, `FAL_KEY=`."""
    return _DECORATION.sub("", value.strip().strip("\"'").strip()).strip().strip("\"'").strip()


def _checked_key(value: str, source: str) -> Key:
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
