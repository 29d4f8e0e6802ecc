"""The tests see the pack as ComfyUI does: loaded by path, under a name of its own."""

import importlib.util
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads make tiny tests slow on a busy machine
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # a core for each worker and its child processes
import pytest
import torch

PACK = Path(__file__).resolve().parents[1]
NAME = "multitalk_pack"  # not `multitalk`, which is the engine where it is installed
# `python -m pytest` puts the root on sys.path, where our nodes/ would hide ComfyUI's own nodes.py.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != PACK]
spec = importlib.util.spec_from_file_location(NAME, PACK / "__init__.py", submodule_search_locations=[str(PACK)])
sys.modules[NAME] = importlib.util.module_from_spec(spec)  # not executed: the engine's tests need no ComfyUI
sys.path.append(str(PACK / "tests"))  # the tests' own helpers: `from support import golden`
sys.path.append(str(PACK))  # last: `demo` and `benchmarks`, programs of the root that say `from pipeline import ...`

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))  # as the processes that tests fork


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps the tests of a file on one worker, which makes the file's fixtures once, unless a mark groups them."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.as_posix()))
