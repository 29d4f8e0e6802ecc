"""Listens to a real ComfyUI as its page does: a websocket, by the standard library alone."""

from __future__ import annotations

import base64
import json
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CLIENT = "multitalk-tests"
PREVIEW = 1  # the first four bytes of a binary message that holds a picture


@dataclass(frozen=True)
class Event:
    """A message of the server: its type, and its data (a picture's bytes for `preview`)."""

    kind: str
    data: Any


class Events:
    """Everything the server says to the client `CLIENT` from now on."""

    def __init__(self, port: int):
        self.events: list[Event] = []
        self._socket = socket.create_connection(("127.0.0.1", port), 10)
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        request = f"GET /ws?clientId={CLIENT} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
        request += f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        self._socket.sendall(request.encode())
        self._stream = self._socket.makefile("rb")
        while self._stream.readline().strip():
            pass  # the answer's head
        self._socket.settimeout(None)
        threading.Thread(target=self._listen, daemon=True).start()

    def wait(self, condition: Callable[[Event], bool], timeout_s: float = 120) -> Event:
        """The first event that is wanted.

        Raises:
            TimeoutError: it did not come.
        """
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            for event in list(self.events):
                if condition(event):
                    return event
            time.sleep(0.005)
        raise TimeoutError(f"not among {[event.kind for event in self.events]}")

    def of(self, kind: str) -> list[Event]:
        """All events of a type so far."""
        return [event for event in list(self.events) if event.kind == kind]

    def close(self) -> None:
        """Hangs up."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _listen(self) -> None:
        while True:
            head = self._stream.read(2)
            if len(head) < 2:
                return
            opcode, size = head[0] & 15, head[1] & 127
            if size == 126:
                size = struct.unpack(">H", self._stream.read(2))[0]
            elif size == 127:
                size = struct.unpack(">Q", self._stream.read(8))[0]
            payload = self._stream.read(size)
            if opcode == 1:
                message = json.loads(payload)
                self.events.append(Event(message["type"], message["data"]))
            elif opcode == 2 and struct.unpack(">I", payload[:4])[0] == PREVIEW:
                self.events.append(Event("preview", payload[8:]))  # four more name the format
