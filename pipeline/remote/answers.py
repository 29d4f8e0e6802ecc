"""What fal's answers mean: the ways in which a job can fail, and the bodies as plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import RemoteError


class JobStopped(RemoteError):
    """The user wants the job to end."""


class JobNotSent(RemoteError):
    """The job has certainly not reached fal."""


class JobRejected(RemoteError):
    """fal has refused the job, and bills nothing."""


class JobUncertain(RemoteError):
    """Nobody here can know whether fal has the job."""


class AccessDenied(RemoteError):
    """fal does not take the key; what was bought before is still there."""


class JobLost(RemoteError):
    """fal no longer knows the job."""


class JobFailed(RemoteError):
    """fal has run the job, without success."""


class NoAnswer(RemoteError):
    """One question was not answered; the next may be."""


@dataclass(frozen=True)
class Answer:
    """What came back: status, headers (names in lower case) and body."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object, or an empty one where there is none."""
        try:
            body = json.loads(self.content)
        except (ValueError, RecursionError):
            return {}
        return body if isinstance(body, dict) else {}

    @property
    def too_busy(self) -> bool:
        """Whether the request was certainly turned away; a 502 or 504 of the door may have let it in."""
        return self.status == 429 or (self.status == 503 and self.from_ingress)

    @property
    def detail(self) -> str:
        """fal's own words about a failure; a model's copy of the input is left out."""
        detail = self.body.get("detail") or self.body.get("error") or ""
        return "; ".join(map(field_error, detail)) if isinstance(detail, list) else str(detail)

    @property
    def from_ingress(self) -> bool:
        """Whether fal's front door answered, in the queue's place."""
        return self.status in (502, 503, 504) and b"nginx" in self.content and "x-fal-request-id" not in self.headers


@dataclass(frozen=True)
class Poll:
    """Where a job stands.

    Attributes:
        status: IN_QUEUE, IN_PROGRESS or COMPLETED.
        queue_position: requests before this one; None where fal does not say.
        logs: time stamp and message of each line, oldest first.
        error: what went wrong, for a completed job that failed.
    """

    status: str
    queue_position: int | None
    logs: tuple[tuple[str, str], ...]
    error: str | None


@dataclass(frozen=True)
class Result:
    """A finished job: the model's answer, and the units that fal bills for it."""

    body: dict[str, Any]
    units: float | None


def printable(text: str, length: int) -> str:
    """The end of what a terminal would show of `text`: its last line overwritten, without control characters."""
    shown = text.rstrip().rsplit("\r", 1)[-1]
    return "".join(character if character.isprintable() else " " for character in shown)[:length]


def field_error(entry: object) -> str:
    """`field: message` of one entry of a model's refusal."""
    if not isinstance(entry, dict):
        return str(entry)
    place = entry.get("loc")
    field = ".".join(str(part) for part in place if part != "body") if isinstance(place, list) else ""
    return f"{field or 'request'}: {entry.get('msg', 'refused')}"


def log_lines(body: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Time stamp and message of each line of a status body."""
    entries = body.get("logs")
    lines = [e for e in entries if isinstance(e, dict) and e.get("message")] if isinstance(entries, list) else []
    return tuple((str(line.get("timestamp")), str(line["message"])) for line in lines)


def number(text: str | None) -> float | None:
    """A header's number, None where it is none."""
    try:
        number = float(text) if text is not None else None
    except ValueError:
        return None
    return number if number is None or 0 <= number < 1e6 else None
