"""Signs of life: a thread in each rank writes them, the launcher ends a rank that gives none."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

INTERVAL_S = 0.5
SILENCE_S = 5.0  # after which a rank counts as stopped; a thread that waits for Python's lock is late by less


def start_heartbeat(folder: Path, rank: int) -> None:
    """Starts the thread of this process, which is rank number `rank`."""
    path = folder / f"heartbeat.{rank}"
    path.write_text(str(os.getpid()), encoding="ascii")

    def beat() -> None:
        while path.exists():
            os.utime(path)
            time.sleep(INTERVAL_S)

    threading.Thread(target=beat, name="heartbeat", daemon=True).start()


class HeartbeatMonitor:
    """Looks for ranks that have stopped, and kills them, so that the launcher sees them fail."""

    def __init__(self, folder: Path, num_ranks: int):
        self.silent_ranks: list[int] = []  # ranks, in the order in which they were killed
        self._folder, self._num_ranks = folder, num_ranks

    def start(self) -> None:
        """Watches from a thread of its own."""
        threading.Thread(target=self._monitor, name="heartbeats", daemon=True).start()

    def _monitor(self) -> None:
        awake_s = last_s = time.time()
        while True:
            now_s = time.time()
            if now_s - last_s > SILENCE_S / 2:
                awake_s = now_s  # this process slept too, with the whole machine perhaps
            last_s = now_s
            for rank in set(range(self._num_ranks)).difference(self.silent_ranks):
                path = self._folder / f"heartbeat.{rank}"
                if path.exists() and now_s - max(awake_s, path.stat().st_mtime) > SILENCE_S:
                    self.silent_ranks.append(rank)
                    kill(int(path.read_text(encoding="ascii")))
            time.sleep(INTERVAL_S)


def kill(pid: int) -> None:
    """Ends a process at once; one that has ended already is left alone."""
    try:
        os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))  # Windows has no other
    except ProcessLookupError:
        return
