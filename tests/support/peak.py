"""How much memory work takes at its fullest, told by a process of its own where nothing else has left its mark."""

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


def told_by(script: str, *given: object) -> list | float:
    """What `script` prints as JSON in its last line; it finds `given` in `sys.argv`, and the tests' own helpers."""
    command = [sys.executable, "-c", f"import conftest, json, sys\n{script}", *map(str, given)]
    environment = {**os.environ, **ALLOCATOR, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


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
