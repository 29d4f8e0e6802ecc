"""fal's storage: leave to upload, and the uploads, each given up by its pace and not by its length."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from .answers import Answer, JobUnsent, NoAnswer
from .connection import Connection
from .exchange import Backoff, ExchangeError, ReportBytes, Wait
from .media import Media

logger = logging.getLogger(__name__)

T = TypeVar("T")

ANSWER_S = 30
SLOWEST_BYTES_PER_S = 8 * 1024  # what a socket has taken may still be on its way for so long
LIFETIME_S = 24 * 3600  # of an upload at fal; it must outlive the queue
LIFECYCLE_HEADERS = ("X-Fal-Object-Lifecycle", "X-Fal-Object-Lifecycle-Preference")
PIECE_BYTES = 64 * 1024
TRIES = 3


@dataclass(frozen=True)
class Leave:
    """Leave to upload.

    Attributes:
        authorization: the header of uploads.
        server_time: fal's own clock when it was given, seconds since 1970; None where fal did not say.
    """

    authorization: str
    server_time: float | None


class Storage:
    """The storage of one account.

    Raises:
        AccessDenied, JobRejected: from every method, where fal does not serve the key or the account.
        JobUnsent: from every method, where three tries failed.
    """

    def __init__(self, connection: Connection, backoff: Backoff, wait: Wait):
        self._connection, self._backoff, self._wait = connection, backoff, wait

    def open(self) -> Leave:
        """Leave to upload: the first word with fal, before anything is bought."""

        def send() -> Leave:
            url = f"{self._connection.storage_url}/storage/auth/token?storage_type=fal-cdn-v3"
            answer = self._connection.exchange("POST", url, ANSWER_S, self._wait, content=b"{}")
            return Leave(f"{self._text(answer, 'token_type')} {self._text(answer, 'token')}", answer.server_time)

        return self._retry("The request for an upload", send)

    def upload(self, media: Media, leave: Leave, report: ReportBytes) -> str:
        """URL of the uploaded file, which fal deletes after a day."""
        size = len(media.data)
        lifecycle = json.dumps({"expiration_duration_seconds": LIFETIME_S})
        headers = {
            "Authorization": leave.authorization,
            "Content-Type": media.content_type,
            "Content-Length": str(size),
            "X-Fal-File-Name": media.file_name,
            **dict.fromkeys(LIFECYCLE_HEADERS, lifecycle),
        }

        def pieces() -> Iterator[bytes]:
            for start in range(0, size, PIECE_BYTES):
                self._wait(0)
                report(start, size)
                yield media.data[start : start + PIECE_BYTES]

        def send() -> str:
            answer = self._connection.exchange(
                "POST",
                f"{self._connection.file_url}/files/upload",
                ANSWER_S + size / SLOWEST_BYTES_PER_S,
                self._wait,
                content=pieces(),
                headers=headers,
                with_key=False,
            )
            url = self._text(answer, "access_url")
            if not url.startswith("http"):
                raise NoAnswer("an answer without an address")
            return url

        return self._retry(media.file_name, send)

    def _retry(self, name: str, send: Callable[[], T]) -> T:
        """The outcome of `send`, which may fail twice."""
        reason = ""
        for tries in range(1, TRIES + 1):
            try:
                return send()
            except (ExchangeError, NoAnswer) as error:
                reason = str(error)
            logger.warning("Sending %s to fal failed (%s), try %d of %d.", name, reason, tries, TRIES)
            if tries < TRIES:
                self._wait(self._backoff.after(tries, longest=4))
        raise JobUnsent(f"{name} could not be sent to fal ({reason}). Nothing was bought, and it can be sent again.")

    def _text(self, answer: Answer, name: str) -> str:
        """A field of an answer.

        Raises:
            NoAnswer: there is none.
        """
        self._connection.check_account(answer)
        value = answer.body.get(name)
        if not 200 <= answer.status < 300 or not isinstance(value, str) or not value.isascii():
            raise NoAnswer(self._connection.explain(answer))
        return value
