"""`python -m pipeline.parallel.launcher FOLDER MODULE DEVICE...`: starts a rank on each device and watches over them.

The ranks are children of torch's elastic agent, which ends all when one fails. This process ends them too when its
standard input ends, with the program that started it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from .heartbeat import HeartbeatMonitor

FAILURE_FILE = "failure.json"
LOGS = "logs"


def main(arguments: list[str]) -> int:
    """Starts the ranks and waits for them; 1 when one failed, which `FAILURE_FILE` tells of."""
    folder, module, devices = Path(arguments[0]), arguments[1], arguments[2:]
    monitor = HeartbeatMonitor(folder, len(devices))
    monitor.start()
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=len(devices),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.2,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / LOGS), redirects=Std.ALL),
    )
    try:
        elastic_launch(config, sys.executable)("-u", "-m", module, str(folder), *devices)
    except ChildFailedError as error:
        failure = _first(list(error.failures.values()), monitor.silent_ranks)
        report = {
            "rank": failure.local_rank,
            "exit_code": failure.exitcode,
            "is_stopped": failure.local_rank in monitor.silent_ranks,
        }
        (folder / FAILURE_FILE).write_text(json.dumps(report), encoding="utf-8")
        return 1
    except SignalException:
        return 1
    return 0


def _first(failures: list[ProcessFailure], silent_ranks: list[int]) -> ProcessFailure:
    """The failure that came before the others: a stopped rank's, a killed one's, then by time.

    The others fail by the loss of it, sometimes before the agent sees it.
    """

    def order(failure: ProcessFailure) -> tuple[bool, bool, int]:
        is_killed = failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM
        return failure.local_rank not in silent_ranks, not is_killed, failure.timestamp

    return min(failures, key=order)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
