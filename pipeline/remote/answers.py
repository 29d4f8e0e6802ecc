"""Answers of fal as plain values, and the errors that they stand for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from ..errors import RemoteError


class JobInterrupted(RemoteError):
    """The user's wish that the job should end."""


class JobUnsent(RemoteError):
    """A job that has certainly not reached fal."""


class JobRejected(RemoteError):
    """A job that fal does not take at present, and does not bill."""


class JobUncertain(RemoteError):
    """A job of which nobody here can know whether fal has it."""


class AccessDenied(RemoteError):
    """A key or an account that fal does not serve; what was bought before is still there."""


class JobLost(RemoteError):
    """A job that fal no longer has."""


class JobFailed(RemoteError):
    """A job that fal has run without success."""


class ContentRejected(JobFailed):
    """A request that fal refuses for its content; sent again unchanged it would be refused again."""


class NoAnswer(RemoteError):
    """A question without a usable answer; the next may have one."""


@dataclass(frozen=True)
class Answer:
    """An HTTP response: status, headers (names in lower case) and the body as bytes."""

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
    def server_time(self) -> float | None:
        """Seconds since 1970 by the server's own clock (RFC 9110 `Date`); None where it does not say."""
        try:
            return parsedate_to_datetime(self.headers["date"]).timestamp()
        except (KeyError, TypeError, ValueError, OverflowError):
            return None

    @property
    def is_busy(self) -> bool:
        """A request that was certainly turned away; a 502 or 504 of the ingress may have let it in."""
        return self.status == 429 or (self.status == 503 and self.from_ingress)

    @property
    def detail(self) -> str:
        """fal's own words about a failure; a model's copy of the input is left out."""
        detail = self.body.get("detail") or self.body.get("error") or ""
        return "; ".join(map(_field_error, detail)) if isinstance(detail, list) else str(detail)

    @property
    def from_ingress(self) -> bool:
        """An answer of fal's ingress in the queue's place."""
        return self.status in (502, 503, 504) and b"nginx" in self.content and "x-fal-request-id" not in self.headers


@dataclass(frozen=True)
class Poll:
    """The state of a job.

    Attributes:
        status: IN_QUEUE, IN_PROGRESS or COMPLETED.
        queue_position: requests before this one; None where fal does not say.
        logs: time stamp and message of each line, oldest first.
        error: the reason of a completed job's failure.
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
    """The end of `text` as a terminal would show it: its last line overwritten, without control characters."""
    line = text.rstrip().rsplit("\r", 1)[-1]
    return "".join(character if character.isprintable() else " " for character in line)[:length]


def log_lines(body: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Time stamp and message of each line of a status body."""
    entries = body.get("logs")
    lines = [e for e in entries if isinstance(e, dict) and e.get("message")] if isinstance(entries, list) else []
    return tuple((str(line.get("timestamp")), str(line["message"])) for line in lines)


def number(text: str | None) -> float | None:
    """A header's number in 0..1e6, None where it is none."""
    try:
        value = float(text) if text is not None else None
    except ValueError:
        return None
    return value if value is None or 0 <= value < 1e6 else None


def _field_error(entry: object) -> str:
    """`field: message` of one entry of a model's refusal."""
    if not isinstance(entry, dict):
        return str(entry)
    location = entry.get("loc")
    field = ".".join(str(part) for part in location if part != "body") if isinstance(location, list) else ""
    return f"{field or 'request'}: {entry.get('msg', 'refused')}"
