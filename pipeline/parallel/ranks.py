"""The ranks of a run as the program sees them that renders: processes that are started, asked, cancelled and ended.

Nothing here imports `torch.distributed`, which the ranks alone need.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from torch import Tensor

from ..errors import ConfigError, DeviceError, NumericalError
from ..generation.denoiser import OnStep
from ..generation.run_spec import RunSpec
from ..generation.window_tensors import WindowTensors
from ..generation.windows import Window
from ..host import Host
from ..memory.placement import GB, MemoryConfig
from ..models.transformer.model import MultiTalkTransformer
from ..sampling.noise import Noise
from ..weights.handles import TransformerFiles
from .heartbeat import kill
from .messages import Message, socket_address
from .split import Split, choose_layout

logger = logging.getLogger(__name__)

ENGINE = Path(__file__).parents[1]  # `pipeline`, or what it is installed as
WORKER = f"{ENGINE.name}.parallel.worker"
CANCEL_FILE = "cancel"
POLL_S = 0.1
START_S = 600.0  # of all processes: they read torch from a cold disk
END_S = 4.0  # within which ranks answer a cancel, or end after the last message; then they are killed
FAILURE_S = 8.0  # within which the launcher has ended the others of a rank that died
LOG_LINES = 15  # of a failed rank that its error shows


class Ranks:
    """A process on each of several devices, which denoise together.

    They are started by the first run and kept, with their weights, for those that follow, until `close` or the end of
    this object.

    Args:
        devices: such as `cuda:0` and `cuda:1`; `cpu` may come more than once.
        split: the part of the work that each takes.

    Raises:
        ConfigError: a card is named twice.
    """

    def __init__(self, devices: Sequence[str], split: Split = Split.AUTO):
        self.devices, self.split = tuple(devices), split
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._folder = Path()  # of the processes' files, while there are any
        self._launcher: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        cards = [device for device in devices if device != "cpu"]
        if len(set(cards)) < len(cards):
            raise ConfigError(f"A device is named twice in {', '.join(devices)}. Name each once; only cpu may repeat.")

    def __del__(self) -> None:
        self.close()

    @contextmanager
    def denoiser(
        self,
        files: TransformerFiles,
        transformer: MultiTalkTransformer,
        spec: RunSpec,
        noise: Noise,
        host: Host,
        memory: MemoryConfig,
        kept_bytes: int,
    ) -> Iterator[RanksDenoiser]:
        """Context in which the ranks denoise the windows of one run.

        Args:
            files: of the network, which each rank maps for itself.
            transformer: the network, for its sizes.
            noise: not used: the ranks draw their own, from the seed.
            memory: how much of each device the transformer may take.
            kept_bytes: that stay on each device from step to step beside the weights.

        Raises:
            ConfigError: this run cannot be split over so many devices.
            DeviceError: a rank died.
        """
        size, passes = spec.latent_size(spec.windows[0]), spec.new_guidance().passes
        heads = transformer.config.num_attention_heads
        layout = choose_layout(self.split, len(self.devices), len(passes), heads, size.tokens_per_frame)
        logger.info(
            "%d devices: %d of the passes at a time, the tokens of each on %d.",
            len(self.devices), layout.guidance, layout.tokens,
        )  # fmt: skip
        if self._launcher is None:
            self._start(host)
        run = {"layout": layout, "files": _absolute(files), "spec": spec, "memory": memory, "kept_bytes": kept_bytes}
        try:
            self.request(Message("run", run), host.check_cancelled)
            yield RanksDenoiser(self, host)
        finally:
            if self._launcher is not None:
                self.request(Message("end"))

    def request(
        self, message: Message, check_cancelled: Callable[[], None] = lambda: None, on_step: OnStep | None = None
    ) -> Message:
        """Sends a message to the ranks and returns their answer.

        Args:
            check_cancelled: called while they work; its error stops them, and is raised again.
            on_step: called for each step of a window.

        Raises:
            DeviceError: a rank died, or all ran out of memory.
            NumericalError: the latents are not finite.
            ConfigError: the ranks refused.
        """
        try:
            self._send(message)
            while (answer := self._receive(check_cancelled)).kind == "step":
                assert on_step is not None, "windows have steps"
                on_step(answer.fields["step"], answer.tensors["clean"])
        except DeviceError:
            raise
        except BaseException:
            self._cancel()
            raise
        if answer.kind == "error":
            raise _error(**answer.fields)
        return answer

    def close(self) -> None:
        """Ends the ranks."""
        if self._launcher is None:
            return
        with suppress(DeviceError):
            self._send(Message("close"))
            self._wait_for_launcher(END_S)
        self._end()

    def _start(self, host: Host) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="multitalk-ranks-", ignore_cleanup_errors=True)
        self._folder = Path(self._temporary.name)
        environment = {**os.environ, "PYTHONPATH": _python_path()}
        if sys.platform == "linux":
            environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all ranks are on this machine
        command = [sys.executable, "-m", f"{ENGINE.name}.parallel.launcher", str(self._folder), WORKER, *self.devices]
        listener = Listener(socket_address(self._folder))
        try:
            with (self._folder / "launcher.log").open("wb") as log:
                self._launcher = subprocess.Popen(
                    command, cwd=ENGINE.parent, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log,
                    start_new_session=True,
                )  # fmt: skip
            self._connection = self._accept(listener, host)
        except BaseException:
            self._end()
            raise
        finally:
            with suppress(FileNotFoundError):  # it went with the folder
                listener.close()

    def _accept(self, listener: Listener, host: Host) -> Connection:
        """The connection of the first rank, once all have started."""
        connections, end_s = Queue(), time.monotonic() + START_S

        def accept() -> None:
            with suppress(OSError):  # the listener was closed
                connections.put(listener.accept())

        threading.Thread(target=accept, name="first rank", daemon=True).start()
        while True:
            with suppress(Empty):
                return connections.get(timeout=POLL_S)
            host.check_cancelled()
            self._check_launcher()
            if time.monotonic() > end_s:
                raise self._failure()

    def _send(self, message: Message) -> None:
        assert self._connection is not None, "started before"
        try:
            self._connection.send_bytes(message.to_bytes())
        except OSError:
            self._wait_for_launcher(FAILURE_S)
            raise self._failure() from None

    def _receive(self, check_cancelled: Callable[[], None]) -> Message:
        """The next message that is no log line."""
        assert self._connection is not None, "started before"
        while True:
            try:
                while not self._connection.poll(POLL_S):
                    check_cancelled()
                    self._check_launcher()
                message = Message.from_bytes(self._connection.recv_bytes())
            except (EOFError, ConnectionError):
                self._wait_for_launcher(FAILURE_S)
                raise self._failure() from None
            if message.kind != "log":
                return message
            logger.log(message.fields["level"], "%s", message.fields["text"])

    def _cancel(self) -> None:
        """Has the ranks drop what they do, and waits until they have; else ends them."""
        if self._connection is None:
            return
        cancel_file, end_s = self._folder / CANCEL_FILE, time.monotonic() + END_S
        cancel_file.touch()

        def check_time() -> None:
            if time.monotonic() > end_s:
                raise TimeoutError

        try:
            while self._receive(check_time).kind == "step":
                check_time()
            cancel_file.unlink()
        except (TimeoutError, DeviceError):
            logger.warning("The devices' processes did not stop in %.0f s and were ended.", END_S)
            self._end()

    def _check_launcher(self) -> None:
        if self._launcher is not None and self._launcher.poll() is not None:
            raise self._failure()

    def _wait_for_launcher(self, limit_s: float) -> None:
        assert self._launcher is not None, "started before"
        with suppress(subprocess.TimeoutExpired):
            self._launcher.wait(limit_s)

    def _failure(self) -> DeviceError:
        """The reason that the ranks ended, with the end of the log that tells it; they are gone afterwards."""
        error, report = "The processes of the devices ended", self._folder / "failure.json"
        log = self._folder / "launcher.log"
        if report.exists():
            failure = json.loads(report.read_text(encoding="utf-8"))
            rank, code = failure["rank"], failure["exit_code"]
            end = "stopped answering" if failure["is_stopped"] else f"ended with exit code {code}"
            if code < 0 and not failure["is_stopped"]:
                end = f"was killed by signal {-code}"
            error = f"The process of device {rank} ({self.devices[rank]}) {end}"
            log = next(self._folder.glob(f"logs/*/attempt_0/{rank}/stderr.log"), log)
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LOG_LINES:]
        self._end()
        tail = "\n".join(["The end of its log:", *lines]) if lines else "Its log is empty."
        return DeviceError(
            f"{error}; all others were ended too. Finished windows are kept where resuming is on. {tail}"
        )

    def _end(self) -> None:
        """Ends all processes that are left, at once, and removes their files."""
        if self._connection is not None:
            self._connection.close()
        if self._launcher is not None and self._temporary is not None:
            for path in self._folder.glob("heartbeat.*"):
                with suppress(FileNotFoundError, ValueError):
                    kill(int(path.read_text(encoding="ascii")))
            self._launcher.kill()
            self._launcher.wait()
            assert self._launcher.stdin is not None
            self._launcher.stdin.close()
            self._temporary.cleanup()
        self._connection = self._launcher = self._temporary = None


class RanksDenoiser:
    """Denoises the windows of one run on all ranks."""

    def __init__(self, ranks: Ranks, host: Host):
        self._ranks, self._host = ranks, host

    def attempts(self) -> Iterator[AbstractContextManager[Any]]:
        """One: the ranks try again by themselves."""
        yield nullcontext()

    def prepare(self, window: Window, tensors: WindowTensors) -> Callable[[OnStep], Tensor]:
        """The denoising of a window, ready to be called."""
        return partial(self._denoise, Message("window", {"window": window.index}, tensors.by_name()))

    def _denoise(self, message: Message, on_step: OnStep) -> Tensor:
        answer = self._ranks.request(message, self._host.check_cancelled, on_step)
        return answer.tensors["latents"].to(self._host.device)

    def make_room(self, vae_bytes: int) -> bool:
        """Has the weights leave the devices where `vae_bytes` are not left. True when they are left now."""
        if self._host.free_memory() < vae_bytes:
            logger.info("The transformer leaves the devices: the VAE wants %.1f GB.", vae_bytes / GB)
            self.release()
        return self._host.free_memory() >= vae_bytes

    def release(self) -> None:
        """Has the weights leave the devices, until the next window."""
        self._ranks.request(Message("release"))


def _error(kind: str, message: str) -> Exception:
    if kind == "numerical":
        return NumericalError(message)
    if kind == "refused":
        return ConfigError(message)
    return DeviceError(
        f"A device ran out of memory, with all blocks streamed ({message}). Smaller pictures or shorter windows need "
        f"less."
    )


def _absolute(files: TransformerFiles) -> TransformerFiles:
    """The same files for processes that work in another folder: Python looks for modules in it first."""
    return replace(
        files,
        base=files.base.absolute(),
        adapter=None if files.adapter is None else files.adapter.absolute(),
        loras=tuple((path.absolute(), strength) for path, strength in files.loras),
    )


def _python_path() -> str:
    """The path on which the ranks find the engine."""
    return os.pathsep.join(filter(None, (str(ENGINE.parent), os.environ.get("PYTHONPATH"))))
