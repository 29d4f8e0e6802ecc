"""A real ComfyUI on 127.0.0.1, from the checkout in COMFYUI_DIR, with the nodes of a test beside ours."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from .comfy_events import CLIENT

NEEDS_COMFYUI = [
    pytest.mark.comfyui,
    pytest.mark.xdist_group("comfyui"),  # one server at a time
    pytest.mark.skipif(
        "COMFYUI_DIR" not in os.environ or "COMFYUI_PYTHON" not in os.environ,
        reason="COMFYUI_DIR and COMFYUI_PYTHON name no ComfyUI",
    ),
]


class ComfyServer:
    """One process of ComfyUI; its base directory outlives it, so that the next one finds what this one left."""

    def __init__(self, base: Path, environ: dict[str, str], *options: str, has_page: bool = False):
        comfy = Path(os.environ["COMFYUI_DIR"])
        self.base = base
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        for name in ("custom_nodes", "input", "output", "temp", "user", "models"):
            (base / name).mkdir(parents=True, exist_ok=True)
        command = [os.environ["COMFYUI_PYTHON"], "-u", str(comfy / "main.py"), "--cpu", "--listen", "127.0.0.1"]
        command += ["--port", str(self.port), "--base-directory", str(base), "--disable-auto-launch"]
        command += ["--database-url", f"sqlite:///{base}/user/comfyui.db"]
        if not has_page:
            (base / "web").mkdir(exist_ok=True)
            (base / "web" / "index.html").write_text("<html></html>")
            command += ["--front-end-root", str(base / "web")]
        self.log: list[str] = []
        self.process = subprocess.Popen(
            [*command, *options],
            cwd=comfy,
            env={**environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()
        self._wait_ready()

    def _read(self) -> None:
        self.log.extend(self.process.stdout)

    def _wait_ready(self) -> None:
        end = time.monotonic() + 180
        while time.monotonic() < end and self.process.poll() is None:
            try:
                self.call("/system_stats")
                return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError("ComfyUI did not start:\n" + "".join(self.log[-30:]))

    def call(self, path: str, body: object = None) -> tuple[int, object]:
        """Status and answer of a request; a body makes it a POST."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data)
        request.add_header("Content-Type", "application/json")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=30) as answer:
                status, raw = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, raw = error.code, error.read()
        try:
            return status, json.loads(raw)
        except ValueError:
            return status, raw.decode(errors="replace")

    def queue(self, prompt: dict, workflow: dict | None = None) -> str:
        """Queues a prompt and returns its id."""
        extra = {"extra_pnginfo": {"workflow": workflow}} if workflow else {}
        status, answer = self.call("/prompt", {"prompt": prompt, "extra_data": extra, "client_id": CLIENT})
        if status != 200:
            raise ValueError(json.dumps(answer))
        return answer["prompt_id"]

    def wait(self, prompt_id: str, timeout_s: float = 60) -> dict:
        """The history of a prompt, when it has ended."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            history = self.call(f"/history/{prompt_id}")[1]
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.05)
        raise TimeoutError("the prompt did not end:\n" + "".join(self.log[-30:]))

    def interrupt(self) -> None:
        """Cancels the run, as the Cancel button does."""
        self.call("/interrupt", {})

    def control_c(self) -> None:
        """Presses Ctrl-C and waits until the process is gone."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)

    def close(self) -> None:
        """Ends the process, if it still runs."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
