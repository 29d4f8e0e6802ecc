"""Facts of the machine that a figure was measured on."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch

LIBRARIES = ("torch", "diffusers", "transformers")
MMAP_THRESHOLD, TRIM_THRESHOLD = 32 << 20, 64 << 20  # bytes; where glibc's own rule settles after large tensors
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's names for its parameters


def facts() -> Mapping[str, str | int | float]:
    """Processor, accelerator, versions, threads and load of the machine."""
    values = {
        "time": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "cpu": _cpu_name(),
        "cores": os.cpu_count() or 0,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_1_min": round(os.getloadavg()[0], 2),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        values["gpu"] = torch.cuda.get_device_name()
        values["cuda"] = torch.version.cuda or ""
    return values | {library: version(library) for library in LIBRARIES}


def settle_allocator() -> None:
    """Fixes glibc's thresholds for large tensors: left alone they move, and figures with them twofold."""
    if platform.system() == "Linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD)
        libc.mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD)


def _cpu_name() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
