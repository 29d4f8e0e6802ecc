"""Oldest torch and ComfyUI that the pack runs on."""

import torch
from packaging.version import Version

OLDEST_TORCH = "2.5"  # the first with torch.OutOfMemoryError
OLDEST_COMFYUI = "0.14.0"  # the oldest whose node schema knows `advanced`


def check_versions() -> None:
    """Refuses what is too old.

    Raises:
        ImportError: torch or ComfyUI is older than the pack needs.
    """
    installed = {"torch": (torch.__version__, OLDEST_TORCH), "ComfyUI": (_comfyui_version(), OLDEST_COMFYUI)}
    for name, (version, oldest) in installed.items():
        if Version(version).release < Version(oldest).release:
            raise ImportError(f"MultiTalk needs {name} {oldest}, this is {version}.")


def _comfyui_version() -> str:
    try:
        from comfyui_version import __version__
    except ImportError:
        return "0.3.9"  # the file came with 0.3.10
    return __version__
