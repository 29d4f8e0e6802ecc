"""HTTP exchanges that end: bounded in time and in bytes, and left behind when the user stops."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_futures
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ..errors import RemoteError
from .answers import Answer
from .redaction import without_passwords

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
Wait = Callable[[float], None]  # sleeps so many seconds, and raises JobInterrupted as soon as the user wants an end
Check = Callable[[], None]  # raises where nobody waits for the work any more
ReportBytes = Callable[[int, int], None]  # bytes so far, bytes in all (0 where nobody knows)

THREAD_NAME = "multitalk-fal"  # of every thread that speaks to fal
EXCHANGE_THREAD_NAME = f"{THREAD_NAME}-exchange"
TICK_S = 0.1
IDENTITY = {"Accept-Encoding": "identity"}  # an answer is as large as it arrives
PROXY_VARIABLES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_UNTRUSTED = re.compile(r"certificate verify failed: (.*?)(?: \(_ssl|$)")


@dataclass(frozen=True)
class Backoff:
    """Pauses between two tries, in units of a second (tests take a shorter one)."""

    unit_s: float = 1.0

    def after(self, tries: int, first: float = 1.0, longest: float = 15.0) -> float:
        """Seconds after so many failures: `first`, doubled with each, never more than `longest` units."""
        return self.unit_s * min(first * 2 ** (tries - 1), longest)

    def poll(self, elapsed_s: float) -> float:
        """Seconds between two polls of a job: the longer it takes, the rarer."""
        elapsed = elapsed_s / self.unit_s
        return self.unit_s * (1 if elapsed < 30 else 2 if elapsed < 300 else 5)


class ExchangeError(Exception):
    """An exchange without a usable answer; the message is the reason, as it stands in brackets."""


class RequestUnsent(ExchangeError):
    """A request that has certainly not left."""


class AnswerTooLarge(ExchangeError):
    """An answer of more bytes than it may have."""


class TooSlow(ExchangeError):
    """Work that did not end in its time."""


class _Abandoned(Exception):
    """The end of work for which nobody waits any more."""


class SharedClient:
    """An HTTP client whose sockets are closed when its owner and the last of its exchanges are done with it.

    A socket that is closed while a thread still waits at it may be another's socket when the thread awakes.
    """

    def __init__(self, http: httpx.Client):
        self.http = http
        self._num_users, self._lock = 1, threading.Lock()

    def retain(self) -> None:
        """One user more."""
        with self._lock:
            self._num_users += 1

    def release(self) -> None:
        """One user less."""
        with self._lock:
            self._num_users -= 1
            is_last = self._num_users == 0
        if is_last:
            self.http.close()


def exchange(
    client: SharedClient, request: httpx.Request, limit_s: float, max_bytes: int, wait: Wait | None = None
) -> Answer:
    """The answer to one request, sent once and redirected nowhere.

    Args:
        limit_s: seconds from the connection to the last byte.
        max_bytes: of the body, before and after it is decompressed.
        wait: ends the exchange by raising; None where it has to be finished.

    Raises:
        ExchangeError: there is no answer, or none that may be read.
    """
    import httpx

    def send(check: Check) -> Answer:
        try:
            response = client.http.send(request, stream=True, follow_redirects=False)
            with closing(response):
                headers = {name.lower(): value for name, value in response.headers.items()}
                return Answer(response.status_code, headers, _body(response, max_bytes, check))
        finally:
            client.release()

    client.retain()
    try:
        return run_within(limit_s, send, wait)
    except httpx.HTTPError as error:
        raise http_failure(error) from None


def run_within(limit_s: float, work: Callable[[Check], T], wait: Wait | None = None) -> T:
    """The result of `work`, done in a thread that is left behind when its time is over or `wait` raises.

    Args:
        work: calls the function that it is given between two pieces.

    Raises:
        TooSlow: it took more than `limit_s`.
    """
    future: Future[T] = Future()
    abandoned = threading.Event()

    def check() -> None:
        if abandoned.is_set():
            raise _Abandoned

    def run() -> None:
        try:
            future.set_result(work(check))
        except BaseException as error:  # noqa: BLE001 - raised where the result is read
            future.set_exception(error)

    threading.Thread(target=run, name=EXCHANGE_THREAD_NAME, daemon=True).start()
    end = time.monotonic() + limit_s
    try:
        while not future.done():
            if wait:
                wait(0)
            remaining_s = end - time.monotonic()
            if remaining_s <= 0:
                raise TooSlow(f"no end within {limit_s:g} s")
            wait_for_futures([future], min(TICK_S, remaining_s))
        return future.result()
    finally:
        abandoned.set()


def http_failure(error: httpx.HTTPError) -> ExchangeError:
    """The same failure by its consequence: never sent, or nobody knows."""
    import httpx

    untrusted = _UNTRUSTED.search(str(error))
    if untrusted:
        return RequestUnsent(
            f"the certificate of the server is not trusted: {untrusted[1]}; where a proxy or a virus scanner reads TLS "
            f"traffic, name the file of its root certificate in SSL_CERT_FILE"
        )
    if isinstance(error, httpx.ProxyError):
        return RequestUnsent(without_passwords(f"the proxy refuses: {error}"))
    unsent = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout))
    return (RequestUnsent if unsent else ExchangeError)(type(error).__name__)


@contextmanager
def client_environment() -> Iterator[None]:
    """The making of an HTTP client, which reads proxies and certificates from the environment.

    Raises:
        RemoteError: a variable cannot be used; the message names it.
    """
    import httpx

    try:
        yield
    except (ImportError, ValueError, OSError, httpx.InvalidURL) as error:
        name, advice = _unusable_variable(error)
        raise RemoteError(
            f"The environment variable {name} cannot be used ({_public_reason(error)}). Nothing was sent to "
            f"fal. {advice}"
        ) from None


def _unusable_variable(error: Exception) -> tuple[str, str]:
    """The variable that keeps a client from being made, and the remedy."""
    if isinstance(error, OSError):
        names = [name for name in CERTIFICATE_VARIABLES if os.environ.get(name)]
        return " or ".join(names), "Name a file or a folder of certificates (PEM), or remove it."
    names = [name for name in os.environ if name.upper() in PROXY_VARIABLES and _is_unusable(os.environ[name])]
    if not names:
        return "NO_PROXY", "Name hosts, parted by commas, or remove it."
    socks = ' socks5:// also wants: pip install "httpx[socks]".' if isinstance(error, ImportError) else ""
    return " or ".join(names), f"It must begin with http://, https:// or socks5://.{socks}"


def _public_reason(error: Exception) -> str:
    """The reason in its own words, unless they may be parts of a proxy's password."""
    proxies = [value for name, value in os.environ.items() if name.upper() in PROXY_VARIABLES]
    has_password = any("@" in proxy for proxy in proxies) and not isinstance(error, OSError)
    return type(error).__name__ if has_password else without_passwords(str(error))


def _is_unusable(proxy: str) -> bool:
    import httpx

    try:
        httpx.Client(proxy=proxy if "://" in proxy else f"http://{proxy}", trust_env=False, verify=False).close()
    except (ImportError, ValueError, httpx.InvalidURL):
        return True
    return False


def _body(response: httpx.Response, max_bytes: int, check: Check) -> bytes:
    content = bytearray()
    for piece in response.iter_raw():
        check()
        content += piece
        if len(content) > max_bytes:
            raise AnswerTooLarge(f"an answer of more than {max_bytes} bytes")
    encoding = response.headers.get("content-encoding", "identity").lower()
    if encoding == "identity":
        return bytes(content)
    if encoding not in ("gzip", "deflate"):
        raise ExchangeError("an answer in an encoding that was not asked for")
    try:
        decoded = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(content, max_bytes + 1)
    except zlib.error:
        raise ExchangeError("a damaged answer") from None
    if len(decoded) > max_bytes:
        raise AnswerTooLarge(f"an answer of more than {max_bytes} bytes")
    return decoded


def is_foreign(record: logging.LogRecord) -> bool:
    """Filter for the logs of HTTP, with the addresses and headers of each of our polls."""
    return not (record.threadName or "").startswith(THREAD_NAME)
