"""The connection to fal: its HTTP clients, answers without secrets, and refusals of the account."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import RemoteError
from .answers import AccessDenied, Answer, JobRejected, printable
from .credentials import Key
from .exchange import IDENTITY, SharedClient, Wait, client_environment, exchange, is_foreign

MAX_ANSWER_BYTES = 2**20
CONNECT_S = 10
REASON_LENGTH = 300
HTTP_LOGGERS = ("httpx", "httpcore.connection", "httpcore.proxy", "httpcore.socks", "httpcore.http11")
_BILLING = re.compile(r"balance|billing|credit|payment|fund", re.IGNORECASE)
_KEY_WORDS = re.compile(r"\b(?:key|token|auth\w*|credentials?|scopes?|permissions?)\b", re.IGNORECASE)


class Connection:
    """One account's way to one endpoint; to be closed.

    Args:
        endpoint: id of the model.

    Attributes:
        app_url: beginning of the addresses of the endpoint's jobs.
        queue_url: the queue's own address.
        storage_url: that gives leave to upload.
        file_url: of the file host.
    """

    def __init__(self, key: Key, endpoint: str):
        fal_client = load_library()
        import httpx

        self._key = key
        with client_environment():
            handle = fal_client.SyncClient(key=key.value).get_handle(endpoint, "x")  # sends nothing
            self._client = SharedClient(handle.client)
            self._anonymous = SharedClient(httpx.Client(headers={"User-Agent": handle.client.headers["User-Agent"]}))
        self.storage_url, self.file_url = fal_client.client.REST_URL, fal_client.client.CDN_URL
        self.app_url = handle.response_url.removesuffix("/requests/x")
        self.queue_url = self.app_url.rsplit("/", 2)[0]
        for name in HTTP_LOGGERS:
            logging.getLogger(name).addFilter(is_foreign)

    def close(self) -> None:
        """Closes the sockets, those of exchanges that were left behind when they end."""
        self._client.release()
        self._anonymous.release()

    def exchange(
        self,
        method: str,
        url: str,
        limit_s: float,
        wait: Wait | None,
        *,
        content: bytes | Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        max_bytes: int = MAX_ANSWER_BYTES,
        with_key: bool = True,
    ) -> Answer:
        """The answer to one request; see `exchange.exchange`."""
        import httpx

        client = self._client if with_key else self._anonymous
        body = {"Content-Type": "application/json"} if isinstance(content, bytes) else {}
        timeout = httpx.Timeout(limit_s, connect=min(CONNECT_S, limit_s))
        request = client.http.build_request(
            method, url, content=content, headers={**body, **IDENTITY, **(headers or {})}, timeout=timeout
        )
        return exchange(client, request, limit_s, max_bytes, wait)

    def check_account(self, answer: Answer) -> None:
        """Raises AccessDenied or JobRejected where fal does not serve the key or the account, in fal's own words."""
        if answer.status not in (401, 402, 403):
            return
        detail, reason = self.clean(answer.detail), self.explain(answer)
        if answer.status == 402 or _BILLING.search(detail):
            raise JobRejected(f"The fal account has no credit: fal.ai/dashboard/billing. fal said: {reason}.")
        if answer.status == 401 or not detail or _KEY_WORDS.search(detail):
            raise AccessDenied(
                f"fal does not take the key from {self._key.source} ({reason}). Look at fal.ai/dashboard/keys; a key "
                f"of API scope is enough."
            )
        raise AccessDenied(f"fal does not serve this account: {reason}.")

    def explain(self, answer: Answer) -> str:
        """Status and reason of an answer, for messages."""
        return f"HTTP {answer.status} {self.clean(answer.detail)}".strip()

    def clean(self, text: object) -> str:
        """Text of the server as it may be shown."""
        return printable(self._key.redact.text(str(text)), REASON_LENGTH)

    def clean_json(self, value: Any) -> Any:
        """A JSON value of the server as it may be shown."""
        return self._key.redact.json(value)


def load_library() -> Any:
    """The package fal_client; it takes half a second, so only when it is needed.

    Raises:
        RemoteError: it is not installed.
    """
    try:
        import fal_client
        import fal_client.client
    except ImportError:
        raise RemoteError('The remote run needs the package fal-client: pip install "fal-client>=1.0.3,<2"') from None
    return fal_client
