"""The ledger of purchases, on disk before each of them: no job is paid twice, and no paid video is lost."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from ..errors import RemoteError
from .credentials import private_directory
from .pricing import dollars

LEDGER_FILE = "fal_ledger.sqlite3"
VERSION = 2
LOCK_S = 10
UPLOAD_LIFETIME_S = 20 * 3600  # uploads live a day at fal, and must outlive the queue
DAY_S = 24 * 3600
CHUNK_BYTES = 2**20

_TABLES = (
    """CREATE TABLE IF NOT EXISTS jobs (
    job_key TEXT, attempt INTEGER, endpoint TEXT, state TEXT, request_id TEXT, urls TEXT, seed INTEGER,
    created REAL, updated REAL, usd REAL, units REAL, path TEXT, PRIMARY KEY (job_key, attempt))""",
    "CREATE TABLE IF NOT EXISTS uploads (sha256 TEXT PRIMARY KEY, url TEXT, created REAL)",
    "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, sha256 TEXT)",
)
_COLUMNS_SINCE_2 = {"content_key": "TEXT", "server_time": "REAL", "reason": "TEXT"}
# SQLite's words for faults of the machine; any other fault of the database is one of its contents.
_MACHINE = re.compile(
    r"database( table| schema)? is locked|database or disk is full|disk I/O error|unable to open database|"
    r"attempt to write a readonly database"
)


class State(str, Enum):
    """The state of an attempt."""

    SUBMITTING = "submitting"  # the POST may be under way; without a live thread behind it, the same as unknown
    SUBMITTED = "submitted"
    CANCEL_REQUESTED = "cancel_requested"
    FINISHED = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"
    LOST = "lost"
    UNSENT = "not_sent"
    REJECTED = "rejected"
    CONTENT_REJECTED = "content_rejected"  # for its content
    UNKNOWN = "unknown"

    @property
    def may_be_paid(self) -> bool:
        """True where fal has, or may have, a job that is worth asking for."""
        return self in (State.SUBMITTING, State.SUBMITTED, State.CANCEL_REQUESTED, State.FINISHED, State.UNKNOWN)


@dataclass(frozen=True)
class Row:
    """One attempt at one job.

    Attributes:
        urls: of the uploaded files, by field.
        created, updated: seconds since 1970 by the clock of this machine, which decides nothing.
        usd: the estimate at most, until fal has billed.
        units: billed by fal; None until it says.
        path: of the video; None until it is here.
        content_key: of the job without the account; None in rows of older versions.
        server_time: fal's clock shortly before the POST; None where it is not known.
        reason: of a refusal, in fal's words.
    """

    job_key: str
    attempt: int
    endpoint: str
    state: State
    request_id: str | None
    urls: dict[str, str]
    seed: int
    created: float
    updated: float
    usd: float
    units: float | None = None
    path: Path | None = None
    content_key: str | None = None
    server_time: float | None = None
    reason: str | None = None


class Ledger:
    """A small database in the pack's private directory. It holds neither the key nor the prompt.

    Rows of jobs are kept for good: a clock that has run ahead must not make a purchase forgotten.

    Raises:
        RemoteError: from every method, when the database cannot be read or written.
    """

    def __init__(self, private: Path):
        self.path = private / LEDGER_FILE
        with self._database() as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                raise _Unreadable(f"its version is {version}, and {VERSION} the newest that is known here")
            if version < VERSION:
                _upgrade(database)

    def newest(self, job_key: str) -> Row | None:
        """The last attempt at a job."""
        return self._first("WHERE job_key = ? ORDER BY attempt DESC LIMIT 1", job_key)

    def paid_with_other_key(self, content_key: str, job_key: str) -> Row | None:
        """An attempt at the same job with another key that fal may have taken."""
        with self._database() as database:
            query = f"SELECT {_NAMES} FROM jobs WHERE content_key = ? AND job_key != ? ORDER BY created DESC"
            rows = [_row(record) for record in database.execute(query, (content_key, job_key))]
        return next((row for row in rows if row.state.may_be_paid), None)

    def by_request_id(self, request_id: str) -> Row | None:
        """The attempt that fal knows under this id."""
        return self._first("WHERE request_id = ?", request_id)

    def begin(self, row: Row, cap_usd_per_day: float | None = None) -> None:
        """Writes the new attempt `row`, before its POST.

        Raises:
            RemoteError: the day's cap would be passed, or another process has begun this very attempt.
        """
        with self._database() as database:
            database.execute("BEGIN IMMEDIATE")  # nobody else may spend between the sum and the writing
            now = row.created if row.server_time is None else row.server_time
            check_day(_spending(database, now), row.usd, cap_usd_per_day)
            try:
                _insert(database, row)
            except sqlite3.IntegrityError as error:
                if "UNIQUE" not in str(error):
                    raise
                raise RemoteError("Another ComfyUI is buying this very video. Run again to collect it.") from None

    def update(self, row: Row, **changes: Any) -> Row:
        """Changes columns of `row` on disk, and returns the row as it now is. A row that is gone is written anew."""
        changes = {**changes, "updated": time.time()}
        assignments = ", ".join(f"{name} = ?" for name in changes)
        key = (row.job_key, row.attempt)
        with self._database() as database:
            values = (*map(_column, changes.values()), *key)
            query = f"UPDATE jobs SET {assignments} WHERE job_key = ? AND attempt = ?"
            if not database.execute(query, values).rowcount:
                _insert(database, replace(row, **changes))
            query = f"SELECT {_NAMES} FROM jobs WHERE job_key = ? AND attempt = ?"
            return _row(database.execute(query, key).fetchone())

    def spending_usd(self) -> float:
        """Dollars of the last 24 hours: as billed where fal has, else as estimated at most."""
        with self._database() as database:
            return _spending(database, time.time())

    def uploaded(self, sha256: str) -> str | None:
        """URL of these bytes at fal, if they were sent lately."""
        query = "SELECT url FROM uploads WHERE sha256 = ? AND created BETWEEN ? AND ?"
        now = time.time()
        with self._database() as database:
            record = database.execute(query, (sha256, now - UPLOAD_LIFETIME_S, now)).fetchone()
        return str(record["url"]) if record else None

    def remember_upload(self, sha256: str, url: str) -> None:
        """Notes the URL of bytes at fal, so that a second try sends nothing."""
        with self._database() as database:
            database.execute("DELETE FROM uploads WHERE created < ?", (time.time() - UPLOAD_LIFETIME_S,))
            database.execute("INSERT OR REPLACE INTO uploads VALUES (?, ?, ?)", (sha256, url, time.time()))

    def forget_uploads(self, urls: dict[str, str]) -> None:
        """Has files sent again, which fal may not have been able to read."""
        with self._database() as database:
            database.executemany("DELETE FROM uploads WHERE url = ?", [(url,) for url in urls.values()])

    def remember_file(self, path: Path) -> None:
        """Notes the contents of a video that was written here."""
        sha256 = _sha256(path)
        with self._database() as database:
            database.execute("INSERT OR REPLACE INTO files VALUES (?, ?)", (os.fsencode(path), sha256))

    def is_intact(self, path: Path) -> bool:
        """True of a file that still is as it was written; of one that an older version wrote, if it is there."""
        with self._database() as database:
            record = database.execute("SELECT sha256 FROM files WHERE path = ?", (os.fsencode(path),)).fetchone()
        try:
            return path.is_file() and (record is None or record["sha256"] == _sha256(path))
        except OSError:
            return False

    def _first(self, condition: str, value: str) -> Row | None:
        with self._database() as database:
            record = database.execute(f"SELECT {_NAMES} FROM jobs {condition}", (value,)).fetchone()
            return _row(record) if record else None

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        try:
            private_directory(self.path.parent)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            with closing(sqlite3.connect(self.path, timeout=LOCK_S)) as database:
                database.row_factory = sqlite3.Row
                database.execute("PRAGMA synchronous = FULL")
                yield database
                database.commit()
        except (sqlite3.Error, OSError, _Unreadable) as error:
            if isinstance(error, OSError) or _MACHINE.match(str(error)):
                raise RemoteError(
                    f"The list of bought videos {self.path} cannot be used ({error}). Nothing is bought without it: "
                    f"free disk space, or give the folder back its rights."
                ) from None
            raise RemoteError(
                f"The list of bought videos {self.path} is of another version, or was edited by hand ({error}). "
                f"Nothing is bought without it: move it away to begin a new one."
            ) from None


def check_day(spent_usd: float, usd: float, cap_usd: float | None) -> None:
    """Raises RemoteError when `usd` more would pass the cap of 24 hours."""
    if cap_usd is not None and spent_usd + usd > cap_usd + 1e-9:
        raise RemoteError(
            f"This would cost up to {dollars(usd)}, and {dollars(spent_usd)} went to fal in the last 24 hours: "
            f"more than the {dollars(cap_usd)} of MULTITALK_FAL_MAX_USD_PER_DAY. Wait, or raise it."
        )


class _Unreadable(Exception):
    """A database of contents that are not ours."""


def _upgrade(database: sqlite3.Connection) -> None:
    database.execute("BEGIN IMMEDIATE")  # another process may be at it
    for table in _TABLES:
        database.execute(table)
    names = {record["name"] for record in database.execute("PRAGMA table_info(jobs)")}
    for name, kind in _COLUMNS_SINCE_2.items():
        if name not in names:
            database.execute(f"ALTER TABLE jobs ADD COLUMN {name} {kind}")
    database.execute(f"PRAGMA user_version = {VERSION}")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _addresses(value: Any) -> dict[str, str]:
    return {_text(name): _text(url) for name, url in dict(json.loads(value)).items()}


def _optional(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else convert(value)


_FROM_COLUMN: dict[str, Callable[[Any], Any]] = {
    "job_key": _text,
    "attempt": int,
    "endpoint": _text,
    "state": State,
    "request_id": _optional(_text),
    "urls": _addresses,
    "seed": int,
    "created": float,
    "updated": float,
    "usd": float,
    "units": _optional(float),
    "path": _optional(lambda value: Path(os.fsdecode(value))),
    "content_key": _optional(_text),
    "server_time": _optional(float),
    "reason": _optional(_text),
}
_NAMES = ", ".join(_FROM_COLUMN)


def _row(record: sqlite3.Row) -> Row:
    try:
        return Row(**{name: convert(record[name]) for name, convert in _FROM_COLUMN.items()})
    except (TypeError, ValueError) as error:
        raise _Unreadable(str(error)) from None


def _insert(database: sqlite3.Connection, row: Row) -> None:
    marks = ", ".join("?" * len(_FROM_COLUMN))
    values = [_column(getattr(row, name)) for name in _FROM_COLUMN]
    database.execute(f"INSERT INTO jobs ({_NAMES}) VALUES ({marks})", values)


def _column(value: object) -> object:
    """A field as SQLite keeps it."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return json.dumps(value)
    return os.fsencode(value) if isinstance(value, Path) else value


def _spending(database: sqlite3.Connection, now: float) -> float:
    """Dollars of the 24 hours before `now` that are, or may be, billed."""
    recent = "WHERE COALESCE(server_time, created) > ?"
    rows = [_row(record) for record in database.execute(f"SELECT {_NAMES} FROM jobs {recent}", (now - DAY_S,))]
    return sum(row.usd for row in rows if _may_be_billed(row))


def _may_be_billed(row: Row) -> bool:
    if row.state is State.CONTENT_REJECTED:  # by the model, which may have worked
        return row.request_id is not None
    return row.state not in (State.CANCELLED, State.FAILED, State.UNSENT, State.REJECTED)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
