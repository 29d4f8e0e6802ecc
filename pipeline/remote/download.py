"""Fetches the finished video from fal's file host, and believes nothing that is claimed about it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RemoteError
from .client import Backoff, Wait
from .media import HEAD_BYTES, container, probe

if TYPE_CHECKING:
    import httpx

FILE_HOSTS_VARIABLE = "MULTITALK_FAL_FILE_HOSTS"
FILE_HOSTS = ("fal.media",)
FOLDER = "multitalk"
MAX_BYTES = 512 * 2**20
MAX_URL = 2048
MAX_REDIRECTS = 3
CONNECT_S, READ_S, ALL_S = 10, 30, 900
TRIES, MISSING_TRIES = 5, 3  # a file host may be late with a new file
MISSING_WAIT = 2
CHUNK_BYTES = 256 * 1024
PLAIN_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")

ReportBytes = Callable[[int, int], None]  # bytes that are here, bytes in all (0 where nobody knows)


class TransientError(RemoteError):
    """A try that failed; the next may not."""


class FileMissing(TransientError):
    """The file is not there, or not yet."""


@dataclass(frozen=True)
class RemoteFile:
    """The file that a result names. Nothing of its name or type is used.

    Attributes:
        url: where it lies; on an allowed host, or it is not asked.
        num_bytes: its length; 0 where the result does not say.
    """

    url: str
    num_bytes: int

    @classmethod
    def from_result(cls, body: Mapping[str, Any]) -> RemoteFile:
        """From the model's answer, which is not trusted."""
        video = body.get("video")
        url = video.get("url") if isinstance(video, dict) else None
        if not isinstance(url, str) or not 0 < len(url) <= MAX_URL:
            raise RemoteError("fal's result names no video. Run again to ask for it once more.")
        size = video.get("file_size")
        return cls(url, size if isinstance(size, int) and size > 0 else 0)


def file_hosts(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The hosts that a video may come from, with all below them; MULTITALK_FAL_FILE_HOSTS adds to them."""
    more = environ.get(FILE_HOSTS_VARIABLE, "").lower().split(",")
    return FILE_HOSTS + tuple(host.strip() for host in more if host.strip())


def check_url(url: str, hosts: tuple[str, ...]) -> httpx.URL:
    """The parsed address, if it is https, without user or odd port, on one of `hosts`.

    A name of this list and its certificate are what keeps a hostile result from reaching into the user's network.

    Raises:
        RemoteError: the address is refused; the message shows it, so that the user can look at it.
    """
    import httpx

    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        parsed = httpx.URL()
    host = parsed.host.lower().rstrip(".")
    is_allowed = any(host == allowed or host.endswith(f".{allowed}") for allowed in hosts)
    if parsed.scheme != "https" or parsed.userinfo or parsed.port not in (None, 443) or not is_allowed:
        raise RemoteError(
            f"The video lies at an address that is not fetched: {url[:200]!r}. Only https from {', '.join(hosts)} is; "
            f"{FILE_HOSTS_VARIABLE} adds a host."
        )
    return parsed


def target_stem(output: Path, request_id: str) -> Path:
    """Where the video goes, without its ending: `<output>/multitalk/fal_<yyyymmdd>_<request id>`.

    Raises:
        RemoteError: that is not inside `output`.
    """
    name = request_id if PLAIN_ID.fullmatch(request_id) else hashlib.sha256(request_id.encode()).hexdigest()
    stem = output.resolve() / FOLDER / f"fal_{time.strftime('%Y%m%d')}_{name}"
    if not stem.resolve().is_relative_to(output.resolve()):
        raise RemoteError(f"The folder {output / FOLDER} leads out of the output folder. Make it a plain folder.")
    return stem


def fetch(file: RemoteFile, stem: Path, backoff: Backoff, wait: Wait, report_bytes: ReportBytes) -> Path:
    """Downloads a video, looks into it, and only then gives it its name: `stem` with `.mp4` or `.webm`.

    Raises:
        RemoteError: it cannot be had, or is no video. Nothing half-written is left.
    """
    hosts, missing = file_hosts(), 0
    check_url(file.url, hosts)
    stem.parent.mkdir(parents=True, exist_ok=True)
    for tries in range(1, TRIES + 1):
        try:
            return _fetch_once(file, stem, hosts, wait, report_bytes)
        except FileMissing as error:
            missing, last, pause = missing + 1, error, backoff.unit_s * MISSING_WAIT
            if missing >= MISSING_TRIES:
                break
        except TransientError as error:
            last, pause = error, backoff.after(tries, longest=16)
        if tries < TRIES:
            wait(pause)
    raise RemoteError(f"The finished video could not be fetched: {last} It is paid for: run again to fetch it.")


def _fetch_once(file: RemoteFile, stem: Path, hosts: tuple[str, ...], wait: Wait, report_bytes: ReportBytes) -> Path:
    part = stem.with_name(f"{stem.name}.part")
    try:
        kind = _write(file, part, hosts, wait, report_bytes)
        try:
            probe(part)
        except RemoteError as error:  # cut where its beginning is whole: the next try may bring all of it
            raise TransientError(str(error)) from None
        target = stem.with_name(f"{stem.name}.{kind}")
        os.replace(part, target)
        return target
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()


def _write(file: RemoteFile, part: Path, hosts: tuple[str, ...], wait: Wait, report_bytes: ReportBytes) -> str:
    """Writes the body to `part` and returns what it is, `mp4` or `webm`."""
    head, end = b"", time.monotonic() + ALL_S
    with _open(file.url, hosts) as response, open(part, "wb") as out:
        announced = _length(response)
        for chunk in response.iter_raw(CHUNK_BYTES):
            wait(0)
            head = head if len(head) >= HEAD_BYTES else head + chunk[:HEAD_BYTES]
            if len(head) >= HEAD_BYTES and container(head) is None:
                break
            out.write(chunk)
            _check_size(out.tell())
            if time.monotonic() > end:
                raise TransientError("It took more than 15 minutes.")
            report_bytes(out.tell(), announced or file.num_bytes)
        out.flush()
        os.fsync(out.fileno())
        written = out.tell()
    kind = container(head)
    if len(head) >= HEAD_BYTES and kind is None:
        raise RemoteError("What lies at the result's address is not a video. Nothing of it was kept.")
    if written < max(announced, file.num_bytes, HEAD_BYTES):
        raise TransientError(f"Only {written} of {max(announced, file.num_bytes)} bytes came.")
    return kind


@contextmanager
def _open(url: str, hosts: tuple[str, ...]) -> Iterator[httpx.Response]:
    """The response to a GET that carries no key, redirected only within `hosts`."""
    import httpx

    timeout = httpx.Timeout(READ_S, connect=CONNECT_S)
    try:
        with httpx.Client(
            timeout=timeout, follow_redirects=False, headers={"Accept-Encoding": "identity"}
        ) as anonymous:
            for _ in range(MAX_REDIRECTS + 1):
                with anonymous.stream("GET", check_url(url, hosts)) as response:
                    if not response.is_redirect:
                        _check_answer(response)
                        yield response
                        return
                    url = str(response.url.join(response.headers["location"]))
    except httpx.HTTPError as error:
        raise TransientError(f"The file host failed ({type(error).__name__}).") from None
    except httpx.InvalidURL:
        raise RemoteError("The video's address was redirected to something that is no address.") from None
    raise RemoteError(f"The video's address was redirected more than {MAX_REDIRECTS} times.")


def _check_answer(response: httpx.Response) -> None:
    status, kind = response.status_code, response.headers.get("content-type", "").lower()
    if status in (404, 410):
        raise FileMissing(f"It is not there (HTTP {status}).")
    if status >= 500 or status == 429:
        raise TransientError(f"The file host failed (HTTP {status}).")
    if status != 200:
        raise RemoteError(f"The file host refused the video (HTTP {status}).")
    if kind.startswith(("text/", "application/json")):
        raise RemoteError(f"What lies at the result's address is not a video but {kind[:40]}. Nothing of it was kept.")
    _check_size(_length(response))


def _length(response: httpx.Response) -> int:
    text = response.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else 0


def _check_size(num_bytes: int) -> None:
    if num_bytes > MAX_BYTES:
        raise RemoteError(f"The video has more than {MAX_BYTES // 2**20} MB, which no video of this model has.")
