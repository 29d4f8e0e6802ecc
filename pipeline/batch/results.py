"""The output folder of a batch: videos, a sidecar beside each, a journal, and a table of it all for people."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..host import format_duration
from ..media.files import atomic_write
from ..memory.placement import GB
from .manifest import InvalidLine, Job


@dataclass(frozen=True)
class Result:
    """A finished clip, as its sidecar keeps it.

    Attributes:
        digest: of the job that it was made for.
        video: the file's name.
        num_windows: of the clip.
        first_window: the first that was made here, from 1; an earlier attempt had left those before it.
        seconds: of the attempt that finished it.
        memory_bytes: the device's peak; on a CPU, the process's at the end.
        worker: the process and its host.
        notes: what is worth knowing about the request.
    """

    id: str
    digest: str
    video: str
    num_windows: int
    first_window: int
    seconds: float
    memory_bytes: int
    worker: str
    notes: list[str]


@dataclass(frozen=True)
class Failure:
    """A clip that was not made; `error` is the sentence that a person reads."""

    error: str


@dataclass(frozen=True)
class OutputFolder:
    """The folder that a batch writes to: the same one, under the same path, for all of its processes."""

    root: Path

    @property
    def unfinished(self) -> Path:
        """Finished windows of unfinished clips, and the speed of this machine."""
        return self.root / "unfinished"

    def video(self, job: Job) -> Path:
        """The clip's file."""
        return self.root / f"{job.id}.mp4"

    def is_finished(self, job: Job) -> bool:
        """The clip of exactly this line is there."""
        try:
            sidecar = json.loads(self._sidecar(job).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self._sidecar(job)} is no sidecar of a clip ({error}). Remove it, or choose another folder."
            ) from None
        digest = sidecar.get("digest") if isinstance(sidecar, dict) else None
        return digest == job.digest and self.video(job).is_file()

    def save(self, job: Job, result: Result) -> None:
        """Writes the sidecar, after the video: together they are a finished clip."""
        with atomic_write(self._sidecar(job)) as path:
            path.write_text(json.dumps(asdict(result), indent=1, ensure_ascii=False), encoding="utf-8")

    def log(self, event: str, job: Job | InvalidLine, **facts: Any) -> None:
        """Adds a line to the journal, `journal.jsonl`, for people and their programs; a batch never reads it."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = {"time": now, "event": event, "id": job.id, "line": job.number, **facts}
        with (self.root / "journal.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _sidecar(self, job: Job) -> Path:
        return self.root / f"{job.id}.json"


@dataclass(frozen=True)
class Row:
    """A line of a table for people."""

    line: str
    id: str
    state: str
    time: str = ""
    memory: str = ""
    remarks: str = ""

    @classmethod
    def of(cls, job: Job | InvalidLine, result: Result | Failure) -> Row:
        """The outcome of a job."""
        if isinstance(result, Failure):
            return cls(str(job.number), job.id, "failed", remarks=result.error)
        earlier = f"went on at window {result.first_window} of {result.num_windows}" if result.first_window > 1 else ""
        memory = f"{result.memory_bytes / GB:.1f} GB"
        return cls(str(job.number), job.id, "made", format_duration(result.seconds), memory, earlier)


def table(rows: Iterable[Row]) -> str:
    """Rows in columns below their names; remarks of several lines go on below."""
    names = [field.name for field in fields(Row)]
    cells = [names, *([getattr(row, name) for name in names] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(names) - 1)]
    indent = "\n" + " " * (sum(widths) + 2 * len(widths))
    lines = ("  ".join([*map(str.ljust, row, widths), row[-1].replace("\n", indent)]) for row in cells)
    return "\n".join(line.rstrip() for line in lines)
