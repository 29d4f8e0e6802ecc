"""Peak memory of work, measured in a process of its own where nothing else has left its mark."""

import json
import os
import subprocess
import sys
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


def run_script(script: str, *args: object) -> list | float:
    """The JSON in the last line that `script` prints; it finds `given` in `sys.argv`, and the tests' own helpers."""
    command = [sys.executable, "-c", f"import conftest, json, sys\n{script}", *map(str, args)]
    environment = {**os.environ, **ALLOCATOR, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


class LiveTensors(TorchDispatchMode):
    """Counts what operations make and what of it is still held, to the byte; not what they use inside."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._storages: set[int] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        inputs = {self._name(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and self._name(tensor) not in inputs | self._storages:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        name, size = storage._cdata, storage.nbytes()
        self._storages.add(name)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, name, size)

    def _forget(self, name: int, size: int) -> None:
        self._storages.discard(name)
        self.live -= size

    @staticmethod
    def _name(tensor: Tensor) -> int:
        return tensor.untyped_storage()._cdata
