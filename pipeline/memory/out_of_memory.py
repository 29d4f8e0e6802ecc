"""Recognition of errors that mean that a device's memory ran out."""

from __future__ import annotations

import torch

PHRASES = (  # of RuntimeErrors: libraries allocate by themselves and report it in words of their own
    "out of memory",  # CUDA, HIP, MPS, XPU
    "status_alloc_failed",  # cuBLAS, cuDNN 8
    "allocation_failed",  # cuDNN 9: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED and HOST
    "can't allocate memory",  # torch's allocator on a CPU
)


def is_out_of_memory(error: BaseException) -> bool:
    """True for every error that less memory would have avoided: torch's own, and those of the libraries below it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in PHRASES)
