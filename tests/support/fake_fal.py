"""fal's queue, storage and file host on 127.0.0.1, over real sockets, with faults on demand. Standard library only.

It is reached by two doors. As a CONNECT proxy that ends TLS (`HTTPS_PROXY`), the client under test is wholly
unmodified and every real host name arrives here. In plain HTTP the service is the first part of the path:
`http://127.0.0.1:<port>/queue/...`, for clients whose base addresses were changed.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import struct
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

KEY = "fal-key-id-0123456789:fal-key-secret-abcdef"
CDN_TOKEN = "short-lived-cdn-token"
SERVICES = {
    "queue.fal.run": "queue",
    "queue.falrun.com": "queue",
    "rest.fal.ai": "rest",
    "api.fal.ai": "platform",
}
PLAIN_SERVICES = {"queue", "rest", "cdn", "platform"}
COMPLETED = {"status": "COMPLETED", "logs": None, "metrics": {"inference_time": 1.0}}


@dataclass
class Call:
    """One request, as it arrived."""

    method: str
    host: str
    service: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def line(self) -> str:
        """`METHOD service path`, what faults are matched against."""
        return f"{self.method} {self.service} {self.path}"


@dataclass
class Fault:
    """Something to go wrong, `times` times, with requests whose line matches `pattern`; CONNECT has a line too.

    `kind`: `status` answers with `status`, `body` and `headers`; `drop_before` resets the connection; `drop_after` does
    the work and loses the answer; `hang` and `hang_after` wait `seconds` before a reset, without and with the work;
    `slow` answers after `seconds`; `truncate` promises the whole body and sends half of it; `short` sends half without
    a length, `no_length` all; `drip` sends and `slow_read` takes `rate` bytes a second.
    """

    pattern: str
    kind: str
    times: int = 1
    status: int = 500
    body: bytes | str = b""
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 5.0
    rate: float = 5000.0


@dataclass
class RemoteJob:
    """A job in the queue: what was asked, and how far its script is."""

    request_id: str
    endpoint: str
    arguments: dict
    sent_at: float
    polls: int = 0
    cancelled: bool = False

    @property
    def app(self) -> str:
        """The start of its addresses; fal knows the job nowhere else."""
        return "/".join(self.endpoint.split("/")[:2])


@dataclass
class Reply:
    """An answer of a route."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class FakeFal:
    """The server, its memory, and the switches that tests turn.

    Attributes:
        script: the status bodies that a job walks through, one a look; the last repeats.
        result: the model's answer to a completed job; `result_reply` overrides it whole.
        on_cancel: what becomes of a job: `removed` (404 ever after), `failed`, or `ignored` (it finishes anyhow).
        is_in_listing: whether the platform lists jobs.
        other_jobs: what the platform lists besides, before the jobs.
        page_size: the most jobs of a page, whatever is asked for.
        clock_s: how far the server's clock is ahead of this machine's; None answers without a date.
    """

    def __init__(self, tls: ssl.SSLContext | None, video: bytes):
        self.tls, self.video = tls, video
        self.log: list[Call] = []
        self.jobs: dict[str, RemoteJob] = {}
        self.files: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.key = KEY
        self.new_id: Callable[[], str] = lambda: str(uuid.uuid4())
        self.submit_extra: dict = {}
        self.script: list[dict] = [COMPLETED]
        self.result: dict = {"video": {"url": "https://v3.fal.media/files/out/result.mp4"}, "seed": 42}
        self.result_reply: Reply | None = None
        self.units = "7.25"
        self.video_headers = {"Content-Type": "application/octet-stream"}
        self.redirects: dict[str, str] = {}
        self.on_cancel = "removed"
        self.is_in_listing = True
        self.other_jobs: list[dict] = []
        self.page_size = 1000
        self.clock_s: float | None = 0.0
        self.open_connections = 0
        self.lock = threading.Lock()
        self.withheld = 0  # answers that a fault keeps back at this moment
        self.released = threading.Event()  # lets hanging answers go; set at the end
        self.server = _Server(("127.0.0.1", 0), _Handler)
        self.server.fake = self
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), name="fake-fal", daemon=True).start()

    def close(self) -> None:
        """Ends the server and its hanging answers."""
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def withhold(self, seconds: float) -> None:
        """Keeps an answer back so long, or until it is released."""
        with self.lock:
            self.withheld += 1
        self.released.wait(seconds)
        with self.lock:
            self.withheld -= 1

    @property
    def url(self) -> str:
        """Of the plain door."""
        return f"http://127.0.0.1:{self.port}"

    def fault(self, pattern: str, kind: str, **options: object) -> None:
        """Plans a fault; see `Fault`."""
        self.faults.append(Fault(pattern, kind, **options))

    def calls(self, pattern: str = "") -> list[Call]:
        """The requests so far whose line matches."""
        return [call for call in list(self.log) if re.search(pattern, call.line)]

    @property
    def submits(self) -> list[Call]:
        """The POSTs to the queue."""
        return self.calls("^POST queue ")

    @property
    def cancels(self) -> list[Call]:
        """The PUTs that ask for an end."""
        return self.calls("^PUT queue .*/cancel$")

    def take_fault(self, call: Call) -> Fault | None:
        """The next fault for this request."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, call.line):
                    fault.times -= 1
                    return fault
        return None

    def answer(self, call: Call) -> Reply:
        """Routes a request."""
        handler = {"queue": self._queue, "rest": self._rest, "cdn": self._cdn, "platform": self._platform}
        return handler.get(call.service, lambda _: Reply(404))(call)

    def _queue(self, call: Call) -> Reply:
        if call.headers.get("authorization") != f"Key {self.key}":
            return _json({"detail": "Cannot access application: bad key"}, 401)
        if call.method == "POST":
            return self._submit(call)
        match = re.fullmatch(r"/([^/]+/[^/]+)/requests/([^/]+)(/status|/cancel)?", urlsplit(call.path).path)
        job = self.jobs.get(unquote(match[2])) if match else None
        if job is None or job.app != match[1] or (job.cancelled and self.on_cancel == "removed"):
            return _json({"detail": "Request not found", "status": "NOT_FOUND"}, 404)
        route = {None: self._result, "/status": self._status, "/cancel": self._cancel}[match[3]]
        return route(job, call)

    def _submit(self, call: Call) -> Reply:
        endpoint = call.path.strip("/")
        job = RemoteJob(self.new_id(), endpoint, json.loads(call.body), time.time() + (self.clock_s or 0))
        with self.lock:
            self.jobs[job.request_id] = job
        base = f"https://queue.fal.run/{job.app}/requests/{job.request_id}"
        urls = {"response_url": base, "status_url": f"{base}/status", "cancel_url": f"{base}/cancel"}
        queued = {"status": "IN_QUEUE", "request_id": job.request_id, "queue_position": 0}
        return _json({**queued, **urls, **self.submit_extra})

    def _status(self, job: RemoteJob, call: Call) -> Reply:
        if job.cancelled and self.on_cancel == "failed":
            return _json({**COMPLETED, "error": "Request was cancelled", "error_type": "request_cancelled"})
        body = dict(self.script[min(job.polls, len(self.script) - 1)])
        job.polls += 1
        if "logs" in body and parse_qs(urlsplit(call.path).query).get("logs", ["0"])[0] not in ("1", "true"):
            body["logs"] = None
        return _json(body, 200 if body.get("status") == "COMPLETED" else 202)

    def _result(self, job: RemoteJob, call: Call) -> Reply:
        if job.cancelled and self.on_cancel == "failed":
            return _json({"detail": "Request was cancelled"}, 400)
        if self.result_reply:
            return self.result_reply
        reply = _json(self.result)
        if self.units:
            reply.headers["x-fal-billable-units"] = self.units
        return reply

    def _cancel(self, job: RemoteJob, call: Call) -> Reply:
        if self.script[min(job.polls, len(self.script)) - 1].get("status") == "COMPLETED" and job.polls:
            return _json({"status": "ALREADY_COMPLETED"}, 400)
        job.cancelled = True
        return _json({"status": "CANCELLATION_REQUESTED"}, 202)

    def _rest(self, call: Call) -> Reply:
        if call.headers.get("authorization") != f"Key {self.key}":
            return _json({"detail": "bad key"}, 401)
        expires = (datetime.now(timezone.utc) + timedelta(hours=1)).isoformat()
        token = {"token": CDN_TOKEN, "token_type": "Bearer", "base_url": "https://v3.fal.media", "expires_at": expires}
        return _json(token) if call.path.startswith("/storage/auth/token") else Reply(404)

    def _cdn(self, call: Call) -> Reply:
        if call.method == "POST" and call.path == "/files/upload":
            if call.headers.get("authorization") != f"Bearer {CDN_TOKEN}":
                return Reply(401)
            path = f"/files/in/{uuid.uuid4().hex}/{call.headers.get('x-fal-file-name', 'x')}"
            with self.lock:
                self.files[path] = call.body
            return _json({"access_url": f"https://v3.fal.media{path}"})
        if call.path in self.redirects:
            return Reply(302, b"", {"Location": self.redirects[call.path]})
        return Reply(200, self.files.get(call.path, self.video), dict(self.video_headers))

    def _platform(self, call: Call) -> Reply:
        query = {name: values[0] for name, values in parse_qs(urlsplit(call.path).query).items()}
        if call.headers.get("authorization") != f"Key {self.key}" or "by-endpoint" not in call.path:
            return Reply(401)
        start = query.get("start", "2000-01-01T00:00:00Z")
        earliest = datetime.strptime(start, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc).timestamp()
        jobs = [job for job in self.jobs.values() if self.is_in_listing and job.endpoint == query["endpoint_id"]]
        jobs = [job for job in jobs if job.sent_at >= earliest]
        items = [*self.other_jobs, *({"request_id": job.request_id, "json_input": job.arguments} for job in jobs)]
        first, size = int(query.get("cursor", 0)), min(int(query["limit"]), self.page_size)
        last = first + size
        more = last < len(items)
        return _json({"items": items[first:last], "has_more": more, "next_cursor": str(last) if more else None})


def _service(host: str) -> str:
    return SERVICES.get(host, "cdn" if host == "fal.media" or host.endswith(".fal.media") else host)


def _json(body: dict, status: int = 200) -> Reply:
    return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/json"})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    fake: FakeFal

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are what this server is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
    tunnel = ""  # the host that a CONNECT asked for

    def setup(self) -> None:
        super().setup()
        with self.server.fake.lock:
            self.server.fake.open_connections += 1

    def finish(self) -> None:
        with self.server.fake.lock:
            self.server.fake.open_connections -= 1
        super().finish()

    def do_CONNECT(self) -> None:
        self.tunnel = self.path.rsplit(":", 1)[0]
        call = Call("CONNECT", self.tunnel, _service(self.tunnel), "", {}, b"")
        fault = self.server.fake.take_fault(call)
        self.send_response_only(fault.status if fault and fault.kind == "status" else 200)
        self.end_headers()
        if fault:
            return self._drop(0)
        self.connection = self.server.fake.tls.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb", -1), self.connection.makefile("wb", 0)
        self.close_connection = False
        return None

    def do_GET(self) -> None:
        fake, call = self.server.fake, self._call()
        fault = fake.take_fault(call)
        kind = fault.kind if fault else ""
        call.body = self._read_body(int(call.headers.get("content-length", 0)), fault)
        fake.log.append(call)
        if kind in ("drop_before", "hang"):
            return self._drop(fault.seconds if kind == "hang" else 0)
        reply = Reply(fault.status, _bytes(fault.body), fault.headers) if kind == "status" else fake.answer(call)
        if kind in ("drop_after", "hang_after"):
            return self._drop(fault.seconds if kind == "hang_after" else 0)
        if kind == "slow":
            fake.withhold(fault.seconds)
        return self._send(reply, fault)

    do_POST = do_PUT = do_GET

    def _read_body(self, length: int, fault: Fault | None) -> bytes:
        if fault is None or fault.kind != "slow_read":
            return self.rfile.read(length)
        body = b""
        while len(body) < length and not self.server.fake.released.wait(0.05):
            body += self.rfile.read(min(round(0.05 * fault.rate), length - len(body)))
        return body

    def _call(self) -> Call:
        headers = {name.lower(): value for name, value in self.headers.items()}
        host, path = (self.tunnel or headers.get("host", "")), self.path
        service = _service(host)
        first, _, rest = path.lstrip("/").partition("/")
        if not self.tunnel and first in PLAIN_SERVICES:
            service, path = first, f"/{rest}"
        return Call(self.command, host, service, path, headers, b"")

    def _send(self, reply: Reply, fault: Fault | None) -> None:
        kind, half = fault.kind if fault else "", reply.body[: len(reply.body) // 2]
        self.send_response_only(reply.status)
        clock_s = self.server.fake.clock_s
        if clock_s is not None:
            self.send_header("Date", self.date_time_string(time.time() + clock_s))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if kind in ("short", "no_length"):
            self.send_header("Connection", "close")
        elif "Content-Length" not in reply.headers:
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if kind == "drip":
            self._drip(reply.body, fault.rate)
        else:
            self.wfile.write(half if kind in ("short", "truncate") else reply.body)
        if kind in ("short", "no_length", "truncate"):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_WR)

    def _drip(self, body: bytes, rate: float) -> None:
        size = max(1, round(0.05 * rate))
        for start in range(0, len(body), size):
            if self.server.fake.released.wait(size / rate):
                self.close_connection = True
                return
            self.wfile.write(body[start : start + size])

    def _drop(self, seconds: float) -> None:
        """A real reset, after a silence."""
        self.server.fake.withhold(seconds)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: tests read `FakeFal.log`."""


def _bytes(body: bytes | str) -> bytes:
    return body.encode() if isinstance(body, str) else body
