"""How much memory work takes at its fullest, told by a process of its own where nothing else has left its mark."""

import json
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TESTS = Path(__file__).parents[1]
# Freed arrays go back at once: what is measured is what is held.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": f"{1 << 20}", "MALLOC_TRIM_THRESHOLD_": f"{1 << 20}", "MALLOC_ARENA_MAX": "1"}

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self")


def told_by(script: str, *given: object) -> list | int:
    """What `script` prints as JSON in its last line; it finds `given` in `sys.argv`, and the tests' own helpers."""
    command = [sys.executable, "-c", f"import conftest, json, sys\n{script}", *map(str, given)]
    environment = {**os.environ, **ALLOCATOR, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


class Peak:
    """The highest this process's memory was since this was made, above what it was then."""

    def __init__(self):
        Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts anew
        self._before = bytes_of("VmRSS")

    def __call__(self) -> int:
        """In bytes."""
        return bytes_of("VmHWM") - self._before


class PrivatePeak:
    """The same of private memory, which pages of files are not; looked at every millisecond inside a `with`."""

    def __enter__(self) -> "PrivatePeak":
        self._before = self.highest = bytes_of("RssAnon")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._look()
        self._ended.set()
        self._thread.join()

    def __call__(self) -> int:
        """In bytes."""
        return self.highest - self._before

    def _watch(self) -> None:
        while not self._ended.wait(0.001):
            self._look()

    def _look(self) -> None:
        self.highest = max(self.highest, bytes_of("RssAnon"))


class LiveTensors(TorchDispatchMode):
    """Counts what operations make and what of it is still held, to the byte; not what they use inside."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        given = {self._name(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        made = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and self._name(tensor) not in given | self._seen:
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        name, size = storage._cdata, storage.nbytes()
        self._seen.add(name)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, name, size)

    def _forget(self, name: int, size: int) -> None:
        self._seen.discard(name)
        self.live -= size

    @staticmethod
    def _name(tensor: Tensor) -> int:
        return tensor.untyped_storage()._cdata


def bytes_of(field: str) -> int:
    """What Linux counts under `field` of this process's status: VmRSS, VmHWM, RssAnon."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
