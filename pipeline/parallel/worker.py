"""`python -m pipeline.parallel.worker FOLDER DEVICE...`: one rank of a run, started by the launcher.

All ranks follow the same messages, which the first of them receives from the program that renders.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Client, Connection
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import MultiTalkError, NumericalError
from ..generation.denoiser import LocalDenoiser, local_denoiser
from ..generation.guards import check_latents
from ..generation.run_spec import RunSpec
from ..generation.window_tensors import WindowTensors
from ..host import TorchHost
from ..memory.out_of_memory import is_out_of_memory
from ..memory.placement import MemoryConfig
from ..models.transformer.model import MultiTalkTransformer
from ..models.transformer.token_shares import WholeWindow
from ..sampling.noise import NoiseSource
from ..weights.handles import TransformerFiles
from .heartbeat import start_heartbeat
from .messages import Message, from_json, socket_address
from .rank_agreement import RankAgreement
from .rank_group import TIMEOUT, Cancelled, RankGroup
from .ranks import CANCEL_FILE
from .split import Layout
from .ulysses import UlyssesShares

FAULTS = (Cancelled, MultiTalkError, RuntimeError, MemoryError)
IDLE_S = 60.0  # between two signs of an idle first rank to the others, which wait for less than their time-out


class RankHost(TorchHost):
    """The host of one rank, which a file cancels."""

    def __init__(self, device: str, cancel_file: Path):
        super().__init__(device)
        self._cancel_file = cancel_file

    def check_cancelled(self) -> None:
        """Raises `Cancelled` once the program has laid the file down; the other ranks go by this one."""
        if self._cancel_file.exists():
            raise Cancelled


class Worker:
    """One rank: its network, kept between runs of the same files, and its messages."""

    def __init__(self, folder: Path, device: str):
        self.host = RankHost(device, folder / CANCEL_FILE)
        self.group = RankGroup(range(dist.get_world_size()), torch.device("cpu"))
        self.connection: Connection | None = None
        if self.group.rank == 0:
            self.connection = Client(socket_address(folder))
            logging.getLogger().addHandler(_LogToRun(self))
        self._files: TransformerFiles | None = None
        self._agreements: dict[Layout, RankAgreement] = {}

    def serve(self) -> None:
        """Follows messages until the last."""
        while (message := self.receive()).kind != "close":
            with ExitStack() as stack:
                try:
                    with self.group.together():
                        denoiser = self._enter_run(message, stack)
                except FAULTS as error:
                    self.answer_error(error)
                    self.receive()  # the end of this run
                else:
                    self.answer(Message("done"))
                    self._follow(denoiser)
            self._empty_cache()
            self.answer(Message("done"))

    def _enter_run(self, message: Message, stack: ExitStack) -> LocalDenoiser:
        layout = from_json(Layout, message.fields["layout"])
        if layout not in self._agreements:
            self._agreements[layout] = RankAgreement(layout, self.host.device)
        agreement = self._agreements[layout]
        transformer = self._transformer(from_json(TransformerFiles, message.fields["files"]))
        if layout.tokens > 1:
            transformer.set_shares(partial(UlyssesShares, agreement.pass_ranks))
            stack.callback(transformer.set_shares, WholeWindow)
        spec, memory = from_json(RunSpec, message.fields["spec"]), from_json(MemoryConfig, message.fields["memory"])
        noise, kept_bytes = NoiseSource(spec.seed), message.fields["kept_bytes"]
        return stack.enter_context(local_denoiser(transformer, spec, noise, self.host, memory, kept_bytes, agreement))

    def _transformer(self, files: TransformerFiles) -> MultiTalkTransformer:
        before = self._files
        if before is not None and (before.base, before.adapter, before.dtype) == (
            files.base, files.adapter, files.dtype,
        ):  # fmt: skip
            files = replace(files, shared=before.shared)
        self._files = files
        return files.transformer

    def _follow(self, denoiser: LocalDenoiser) -> None:
        """Follows the messages of one run."""
        while (message := self.receive()).kind != "end":
            if message.kind == "release":
                denoiser.release()
                self._empty_cache()
                self.answer(Message("done"))
                continue
            try:
                latents = self._denoise(denoiser, message.fields["window"], WindowTensors(**message.tensors))
            except FAULTS as error:
                self.answer_error(error)
            else:
                self.answer(Message("done", tensors={"latents": latents}))

    def _denoise(self, denoiser: LocalDenoiser, index: int, tensors: WindowTensors) -> Tensor:
        window = denoiser.spec.windows[index]

        def on_step(step: int, clean: Tensor) -> None:
            if step == 0:
                check_latents(clean, "after the first step")
            self.answer(Message("step", {"step": step}, {"clean": clean}))

        for attempt in denoiser.attempts():
            with attempt:
                latents = denoiser.prepare(window, tensors)(on_step)
                check_latents(latents, "after the last step")
                return latents
        raise AssertionError("the last attempt returns or raises")

    def _empty_cache(self) -> None:
        """Gives the device's free memory back, to other processes."""
        if self.host.device.type == "cuda":
            torch.cuda.empty_cache()

    def receive(self) -> Message:
        """The next message, the same on all ranks; without the program that sends them, the last."""
        data = b""
        while not data:
            if self.connection is not None:
                data = self._read(self.connection)
            length = int(self.group.broadcast(torch.tensor(len(data)), 0))
            if length:
                buffer = torch.frombuffer(bytearray(data or bytes(length)), dtype=torch.uint8)
                data = self.group.broadcast(buffer, 0).numpy().tobytes()
        return Message.from_bytes(data)

    @staticmethod
    def _read(connection: Connection) -> bytes:
        """A message's bytes; none after a while without one."""
        try:
            return connection.recv_bytes() if connection.poll(IDLE_S) else b""
        except EOFError:
            return Message("close").to_bytes()

    def answer(self, message: Message) -> None:
        """Sends a message to the program, from the first rank."""
        if self.connection is not None:
            self.connection.send_bytes(message.to_bytes())

    def answer_error(self, error: Exception) -> None:
        """Tells the program of an error that all ranks have raised; raises any other, which ends them all."""
        kinds = {Cancelled: "cancelled", NumericalError: "numerical", MultiTalkError: "refused"}
        kind = next((word for kind, word in kinds.items() if isinstance(error, kind)), None)
        if is_out_of_memory(error):
            kind = "memory"
        if kind is None:
            raise error
        self.answer(Message("error", {"kind": kind, "message": str(error)}))


class _LogToRun(logging.Handler):
    """Hands the first rank's log on to the program."""

    def __init__(self, worker: Worker):
        super().__init__(logging.INFO)
        self._worker = worker

    def emit(self, record: logging.LogRecord) -> None:
        self._worker.answer(Message("log", {"level": record.levelno, "text": record.getMessage()}))


@torch.inference_mode()
def main(arguments: list[str]) -> None:
    """Joins the other ranks and follows messages."""
    folder, devices = Path(arguments[0]), arguments[1:]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    rank = int(os.environ["RANK"])
    start_heartbeat(folder, rank)
    device = torch.device(devices[rank])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // len(devices)))
    has_nccl = device.type == "cuda" and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_nccl else "gloo", timeout=TIMEOUT)
    Worker(folder, str(device)).serve()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
