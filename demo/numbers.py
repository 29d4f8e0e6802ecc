"""What the training multiplies in: bfloat16 where the machine is fast at it."""

from __future__ import annotations

import torch


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU and on a CPU with AVX-512; float32 on others, which work bfloat16 out bit by bit."""
    fast = device.type != "cpu" or torch.backends.cpu.get_cpu_capability() == "AVX512"
    return torch.bfloat16 if fast else torch.float32


def fast_numbers(device: torch.device) -> torch.autocast:
    """Inside it, matrices are multiplied in `fast_dtype`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=fast_dtype(device) is torch.bfloat16)
