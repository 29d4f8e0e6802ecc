"""What was bought, on disk before it is bought: so that no job is paid twice and no paid video is lost."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ..errors import RemoteError
from .credentials import private_directory
from .payload import dollars

LEDGER_FILE = "fal_ledger.sqlite3"
KEPT_S = 30 * 24 * 3600  # rows; fal itself forgets sooner
UPLOAD_KEPT_S = 20 * 3600  # uploads live a day at fal, and must outlive the queue
DAY_S = 24 * 3600

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    job_key TEXT, attempt INTEGER, endpoint TEXT, state TEXT, request_id TEXT, urls TEXT, seed INTEGER,
    created REAL, updated REAL, usd REAL, units REAL, path TEXT, PRIMARY KEY (job_key, attempt));
CREATE TABLE IF NOT EXISTS uploads (sha256 TEXT PRIMARY KEY, url TEXT, created REAL);
"""


class State(str, Enum):
    """Where an attempt stands."""

    SUBMITTING = "submitting"  # the POST may be under way; without a live thread behind it, the same as unknown
    SUBMITTED = "submitted"
    CANCEL_REQUESTED = "cancel_requested"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"
    LOST = "lost"
    NOT_SENT = "not_sent"
    REJECTED = "rejected"
    UNKNOWN = "unknown"

    @property
    def may_be_billed(self) -> bool:
        """Whether it counts against the day's cap."""
        return self not in (State.CANCELLED, State.FAILED, State.NOT_SENT, State.REJECTED)


@dataclass(frozen=True)
class Row:
    """One attempt at one job.

    Attributes:
        urls: of the uploaded files, by field.
        created, updated: seconds since 1970.
        usd: what it was thought to cost at most, until fal told.
        units: what fal billed; None until it told.
        path: of the video; None until it is here.
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
    units: float | None
    path: Path | None


class Ledger:
    """A small database in the pack's private directory. It holds neither the key nor the prompt.

    Raises:
        RemoteError: from every method, when the database cannot be read or written.
    """

    def __init__(self, private: Path):
        self.path = private / LEDGER_FILE
        with self._database() as database:
            database.executescript(_SCHEMA)
            database.execute("DELETE FROM jobs WHERE updated < ?", (time.time() - KEPT_S,))
            database.execute("DELETE FROM uploads WHERE created < ?", (time.time() - UPLOAD_KEPT_S,))

    def newest(self, job_key: str) -> Row | None:
        """The last attempt at a job."""
        query = "SELECT * FROM jobs WHERE job_key = ? ORDER BY attempt DESC LIMIT 1"
        with self._database() as database:
            record = database.execute(query, (job_key,)).fetchone()
        return _row(record) if record else None

    def by_request_id(self, request_id: str) -> Row | None:
        """The attempt that fal knows under this id."""
        with self._database() as database:
            record = database.execute("SELECT * FROM jobs WHERE request_id = ?", (request_id,)).fetchone()
        return _row(record) if record else None

    def begin(self, row: Row, cap_usd_per_day: float | None = None) -> None:
        """Writes the new attempt `row`, before its POST.

        Raises:
            RemoteError: the day's cap would be passed, or another process has begun this very attempt.
        """
        with self._database() as database:
            database.execute("BEGIN IMMEDIATE")  # nobody else may spend between the look and the writing
            check_day(_spent(database), row.usd, cap_usd_per_day)
            try:
                database.execute(f"INSERT INTO jobs VALUES ({', '.join('?' * 12)})", _values(row))
            except sqlite3.IntegrityError:
                raise RemoteError("Another ComfyUI is buying this very video. Run again to collect it.") from None

    def update(self, row: Row, **changes: object) -> Row:
        """Changes columns of `row` on disk; what comes back is the row as it now is."""
        columns = {name: _column(value) for name, value in {**changes, "updated": time.time()}.items()}
        assignments = ", ".join(f"{name} = ?" for name in columns)
        with self._database() as database:
            database.execute(
                f"UPDATE jobs SET {assignments} WHERE job_key = ? AND attempt = ?",
                (*columns.values(), row.job_key, row.attempt),
            )
            record = database.execute(
                "SELECT * FROM jobs WHERE job_key = ? AND attempt = ?", (row.job_key, row.attempt)
            ).fetchone()
        return _row(record)

    def spent_usd(self) -> float:
        """Dollars of the last 24 hours: billed where fal told, else as estimated at most."""
        with self._database() as database:
            return _spent(database)

    def uploaded(self, sha256: str) -> str | None:
        """Where these bytes lie at fal, if they were sent lately."""
        with self._database() as database:
            record = database.execute(
                "SELECT url FROM uploads WHERE sha256 = ? AND created > ?", (sha256, time.time() - UPLOAD_KEPT_S)
            ).fetchone()
        return record["url"] if record else None

    def remember_upload(self, sha256: str, url: str) -> None:
        """Notes where bytes lie at fal, so that a second try sends nothing."""
        with self._database() as database:
            database.execute("INSERT OR REPLACE INTO uploads VALUES (?, ?, ?)", (sha256, url, time.time()))

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        try:
            private_directory(self.path.parent)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            with closing(sqlite3.connect(self.path, timeout=10)) as database:
                database.row_factory = sqlite3.Row
                database.execute("PRAGMA synchronous = FULL")
                yield database
                database.commit()
        except (sqlite3.Error, OSError) as error:
            raise RemoteError(
                f"The list of bought videos {self.path} cannot be used ({error}). Nothing is bought without it: "
                f"free disk space, or give the folder back its rights."
            ) from None


def check_day(spent_usd: float, usd: float, cap_usd: float | None) -> None:
    """Raises RemoteError when `usd` more would pass the cap of 24 hours."""
    if cap_usd is not None and spent_usd + usd > cap_usd + 1e-9:
        raise RemoteError(
            f"This would cost up to {dollars(usd)}, and {dollars(spent_usd)} went to fal in the last 24 hours: "
            f"more than the {dollars(cap_usd)} of MULTITALK_FAL_MAX_USD_PER_DAY. Wait, or raise it."
        )


def _spent(database: sqlite3.Connection) -> float:
    rows = database.execute("SELECT state, usd FROM jobs WHERE created > ?", (time.time() - DAY_S,))
    return sum(row["usd"] for row in rows if State(row["state"]).may_be_billed)


def _row(record: sqlite3.Row) -> Row:
    values: Mapping[str, object] = dict(record)
    path = Path(record["path"]) if record["path"] else None
    return Row(**{**values, "state": State(record["state"]), "urls": json.loads(record["urls"]), "path": path})


def _values(row: Row) -> list[object]:
    return [_column(value) for value in vars(row).values()]


def _column(value: object) -> object:
    """A field as SQLite keeps it."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return json.dumps(value)
    return str(value) if isinstance(value, Path) else value
