"""Messages that a real ComfyUI sends to its page over a websocket."""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from websockets.sync.client import connect

CLIENT = "multitalk-tests"
PREVIEW = 1  # the first four bytes of a binary message that holds a picture


@dataclass(frozen=True)
class Event:
    """A message of the server: its type, its data (a picture's bytes for `preview`), and its time of arrival."""

    kind: str
    data: Any
    at_s: float


class Events:
    """All messages of the server to the client `CLIENT` from now on."""

    def __init__(self, port: int):
        self.all: list[Event] = []
        self._socket = connect(f"ws://127.0.0.1:{port}/ws?clientId={CLIENT}", max_size=None, proxy=None)
        threading.Thread(target=self._receive, daemon=True).start()

    def wait(self, matches: Callable[[Event], bool], timeout_s: float = 120) -> Event:
        """The first event that matches.

        Raises:
            TimeoutError: it did not come.
        """
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            for event in list(self.all):
                if matches(event):
                    return event
            time.sleep(0.005)
        raise TimeoutError(f"not among {[event.kind for event in self.all]}")

    def of(self, kind: str) -> list[Event]:
        """All events of a type so far."""
        return [event for event in list(self.all) if event.kind == kind]

    def close(self) -> None:
        """Closes the connection."""
        self._socket.close()

    def _receive(self) -> None:
        for message in self._socket:
            if isinstance(message, str):
                content = json.loads(message)
                self.all.append(Event(content["type"], content["data"], time.monotonic()))
            elif struct.unpack(">I", message[:4])[0] == PREVIEW:
                self.all.append(Event("preview", message[8:], time.monotonic()))  # four more name the format
