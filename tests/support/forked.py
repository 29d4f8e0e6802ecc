"""Forked processes, alone or as ranks on gloo: the tests' modules and networks are there without an import."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import socket
import threading
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch._inductor.config
import torch.distributed as dist

LIMIT_S = 300


def on_ranks(count: int, work: Callable[[int], Any]) -> list[Any]:
    """The results of `work(rank)` on `count` ranks of one group; raises what one of them raised."""
    context = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    processes = [
        context.Process(target=_run, args=(rank, count, port, work, pipes[rank][1]), daemon=True)
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    try:
        answers = []
        for receiver, _ in pipes:
            assert receiver.poll(LIMIT_S), "a rank hangs"
            answers.append(receiver.recv())
    finally:
        for process in processes:
            process.kill()
    for _, error in answers:
        assert error is None, error
    return [result for result, _ in answers]


def is_killed(work: Callable[[], Any], after_s: float | None = None) -> bool:
    """True where a process that does `work` ends by SIGKILL, or by an alarm after some seconds."""
    process = os.fork()
    if not process:
        _forget_threads()
        if after_s is not None:
            signal.setitimer(signal.ITIMER_REAL, after_s)  # the signal has no handler: it kills
        thread = threading.Thread(target=work)  # PyAV keeps a converter, with threads of its own, for each thread
        thread.start()
        thread.join()
        os._exit(1)
    _, status = os.waitpid(process, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGALRM)


def _forget_threads() -> None:
    """A forked process has none of its parent's threads: what waits for one, for torch's or a compiler's, hangs."""
    torch.set_num_threads(1)
    torch._inductor.config.compile_threads = 1
    gc.freeze()  # collecting what the parent has left over would wait for its threads too


def _run(rank: int, count: int, port: int, work: Callable[[int], Any], sender: Any) -> None:
    _forget_threads()
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    try:
        dist.init_process_group("gloo")
        with torch.inference_mode():
            sender.send((work(rank), None))
    except BaseException:  # noqa: BLE001 - handed to the test
        sender.send((None, traceback.format_exc()))
    sender.close()
    os._exit(0)
