"""The finished video from fal's file host; nothing that is said about it is believed."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import time
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RemoteError
from ..media.files import atomic_write, check_output
from .exchange import (
    IDENTITY,
    Backoff,
    Check,
    ReportBytes,
    TooSlow,
    Wait,
    client_environment,
    http_failure,
    run_within,
)
from .media import HEAD_BYTES, container, probe
from .redaction import without_passwords

if TYPE_CHECKING:
    import httpx

FILE_HOSTS_VARIABLE = "MULTITALK_FAL_FILE_HOSTS"
FILE_HOSTS = ("fal.media",)
FOLDER = "multitalk"
MAX_BYTES = 512 * 2**20
MAX_URL = 2048
MAX_REDIRECTS = 3
CONNECT_S, READ_S, DOWNLOAD_S = 10, 30, 900
TRIES, MISSING_TRIES = 5, 3  # a file host may be late with a new file
MISSING_WAIT = 2
PLAIN_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


class TransientError(RemoteError):
    """A try that failed; the next may not."""


class FileMissing(TransientError):
    """A file that is not there, or not yet."""


class _Doubtful(TransientError):
    """A video that may have been cut, as the host did not say its length.

    Attributes:
        num_bytes: that came.
    """

    def __init__(self, message: str, num_bytes: int):
        super().__init__(message)
        self.num_bytes = num_bytes


@dataclass(frozen=True)
class RemoteFile:
    """The file that a result names. Nothing of its name or type is used.

    Attributes:
        url: its address; on an allowed host, or it is not fetched.
        num_bytes: its length by the result; 0 where that does not say.
    """

    url: str
    num_bytes: int

    @classmethod
    def from_result(cls, body: Mapping[str, Any]) -> RemoteFile:
        """The file of the model's answer, which is not trusted."""
        video = body.get("video")
        video = video if isinstance(video, dict) else {}
        url, size = video.get("url"), video.get("file_size")
        if not isinstance(url, str) or not 0 < len(url) <= MAX_URL:
            raise RemoteError("fal's result names no video. Run again to ask for it once more.")
        return cls(url, size if isinstance(size, int) and size > 0 else 0)


def file_hosts(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The hosts that a video may come from, with all below them; MULTITALK_FAL_FILE_HOSTS adds to them."""
    more = environ.get(FILE_HOSTS_VARIABLE, "").lower().split(",")
    return FILE_HOSTS + tuple(host.strip() for host in more if host.strip())


def check_url(url: str, hosts: tuple[str, ...]) -> httpx.URL:
    """The parsed address, if it is https, without user or odd port, on one of `hosts`.

    A name of this list and its certificate are what keeps a hostile result from reaching into the user's network.

    Raises:
        RemoteError: the address is refused; the message shows it, so that the user can judge it.
    """
    import httpx

    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        parsed = httpx.URL()
    host = parsed.host.lower().rstrip(".")
    is_trusted = any(host == trusted or host.endswith(f".{trusted}") for trusted in hosts)
    if parsed.scheme != "https" or parsed.userinfo or parsed.port not in (None, 443) or not is_trusted:
        raise RemoteError(
            f"The video lies at an address that is not fetched: {without_passwords(url)[:200]!r}. Only https from "
            f"{', '.join(hosts)} is; {FILE_HOSTS_VARIABLE} adds a host."
        )
    return parsed


def target_stem(output: Path, request_id: str) -> Path:
    """The video's path without its ending: `<output>/multitalk/fal_<yyyymmdd>_<request id>`.

    Raises:
        RemoteError: that is not inside `output`.
    """
    name = request_id if PLAIN_ID.fullmatch(request_id) else hashlib.sha256(request_id.encode()).hexdigest()
    stem = output.resolve() / FOLDER / f"fal_{time.strftime('%Y%m%d')}_{name}"
    if not stem.resolve().is_relative_to(output.resolve()):
        raise RemoteError(f"The folder {output / FOLDER} leads out of the output folder. Make it a plain folder.")
    return stem


def check_folder(output: Path) -> None:
    """Tries to write a video, before one is bought.

    Raises:
        MultiTalkError: it cannot be written; the message has the reason.
    """
    check_output(_free_path(target_stem(output, "video"), "mp4"))


def fetch(file: RemoteFile, stem: Path, backoff: Backoff, wait: Wait, report_bytes: ReportBytes) -> Path:
    """Downloads a video, opens it, and only then gives it its name: `stem` with `.mp4` or `.webm`.

    Raises:
        FileMissing: it is not there.
        RemoteError: it cannot be had, or is no video. Nothing half-written is left.
    """
    hosts = file_hosts()
    check_url(file.url, hosts)
    num_missing, failure, pause_s = 0, "", 0.0
    lengths: set[int] = set()  # that came before: one that comes twice is the file's
    for tries in range(1, TRIES + 1):
        wait(pause_s)
        try:
            return run_within(
                DOWNLOAD_S, lambda check: _fetch_once(file, stem, hosts, lengths, check, report_bytes), wait
            )
        except FileMissing as error:
            num_missing, failure, pause_s = num_missing + 1, str(error), backoff.unit_s * MISSING_WAIT
            if num_missing == MISSING_TRIES:
                raise FileMissing(
                    f"fal no longer has the video ({error}). It was paid for; running again asks for it once more, and "
                    f"`always new` buys another."
                ) from None
        except TooSlow:
            failure, pause_s = f"It took more than {DOWNLOAD_S / 60:g} minutes.", backoff.after(tries, longest=16)
        except TransientError as error:
            if isinstance(error, _Doubtful):
                lengths.add(error.num_bytes)
            failure, pause_s = str(error), backoff.after(tries, longest=16)
        except OSError as error:
            raise RemoteError(
                f"The finished video could not be written to {stem.parent} ({error.strerror or error}). It is paid "
                f"for: make room, or give the folder back its rights, and run again to fetch it."
            ) from None
    raise RemoteError(f"The finished video could not be fetched: {failure} It is paid for: run again to fetch it.")


def _fetch_once(
    file: RemoteFile,
    stem: Path,
    hosts: tuple[str, ...],
    lengths: Container[int],
    check: Check,
    report_bytes: ReportBytes,
) -> Path:
    with _open(file.url, hosts) as response:
        length = _length(response)
        pieces = _pieces(response, length or file.num_bytes, check, report_bytes)
        head = b""
        for piece in pieces:
            head += piece
            if len(head) >= HEAD_BYTES:
                break
        kind = container(head)
        if len(head) < HEAD_BYTES:
            raise TransientError(f"Only {len(head)} bytes came.")
        if kind is None:
            raise RemoteError("What lies at the result's address is not a video. Nothing of it was kept.")
        target = _free_path(stem, kind)
        with atomic_write(target) as part:
            with part.open("wb") as out:
                out.write(head)
                out.writelines(pieces)
                num_bytes = out.tell()
            if num_bytes < length:
                raise TransientError(f"Only {num_bytes} of {length} bytes came.")
            try:
                properties = probe(part)
            except RemoteError as error:  # cut where its beginning is whole: the next try may bring all of it
                raise TransientError(str(error)) from None
            if not length and num_bytes not in lengths and (num_bytes < file.num_bytes or properties.num_damaged):
                raise _Doubtful(f"Only {num_bytes} of {file.num_bytes or 'more'} bytes came.", num_bytes)
            check()
    return target


def numbered_paths(stem: Path, kind: str) -> Iterator[Path]:
    """`stem.mp4`, `stem_2.mp4`, ...: names for a file where people may have changed the ones before."""
    for number in itertools.count(1):
        yield stem.with_name(f"{stem.name}_{number}.{kind}" if number > 1 else f"{stem.name}.{kind}")


def _free_path(stem: Path, kind: str) -> Path:
    """The first name at which nothing stands."""
    return next(path for path in numbered_paths(stem, kind) if not os.path.lexists(path))


def _pieces(response: httpx.Response, total: int, check: Check, report_bytes: ReportBytes) -> Iterator[bytes]:
    """The body as it arrives."""
    num_bytes = 0
    for piece in response.iter_raw():
        check()
        num_bytes += len(piece)
        _check_size(num_bytes)
        report_bytes(num_bytes, total)
        yield piece


@contextmanager
def _open(url: str, hosts: tuple[str, ...]) -> Iterator[httpx.Response]:
    """The response to a GET that carries no key, redirected only within `hosts`."""
    import httpx

    timeout = httpx.Timeout(READ_S, connect=CONNECT_S)
    try:
        with client_environment():
            anonymous = httpx.Client(timeout=timeout, follow_redirects=False, headers=IDENTITY)
        with anonymous:
            for _ in range(MAX_REDIRECTS + 1):
                with anonymous.stream("GET", check_url(url, hosts)) as response:
                    if not response.has_redirect_location:
                        _check_answer(response)
                        yield response
                        return
                    url = str(response.url.join(response.headers["location"]))
    except httpx.HTTPError as error:
        raise TransientError(f"The file host failed ({http_failure(error)}).") from None
    except httpx.InvalidURL:
        raise RemoteError("The video's address was redirected to something that is no address.") from None
    raise RemoteError(f"The video's address was redirected more than {MAX_REDIRECTS} times.")


def _check_answer(response: httpx.Response) -> None:
    status, kind = response.status_code, response.headers.get("content-type", "").lower()
    if status in (404, 410):
        raise FileMissing(f"HTTP {status}")
    if status >= 500 or status == 429:
        raise TransientError(f"The file host failed (HTTP {status}).")
    if status != 200:
        raise RemoteError(f"The file host refused the video (HTTP {status}).")
    if kind.startswith(("text/", "application/json")):
        raise RemoteError("What lies at the result's address is not a video but text. Nothing of it was kept.")
    _check_size(_length(response))


def _length(response: httpx.Response) -> int:
    text = response.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def _check_size(num_bytes: int) -> None:
    if num_bytes > MAX_BYTES:
        raise RemoteError(f"The video has more than {MAX_BYTES // 2**20} MB, which no video of this model has.")
