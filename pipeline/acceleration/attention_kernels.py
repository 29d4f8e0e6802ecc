"""Attention kernels, and the choice of one that works on this machine."""

from __future__ import annotations

import logging
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from ..choice import Choice
from ..models.transformer.scaled_dot_product import Attend, attend_in_chunks, torch_attention

logger = logging.getLogger(__name__)

HOPPER = (9, 0)  # from here cuDNN's kernel is faster than flash attention 2
TOLERANCES = {torch.float32: 1e-3, torch.float16: 1e-2}  # of outputs around 0.3; bfloat16 and quantised kernels: 5e-2
COARSE_TOLERANCE = 5e-2


class AttentionKernel(Choice):
    """Kernel of the transformer's attention."""

    AUTO = "auto"  # the fastest exact one
    FAST = "fast"  # SageAttention where it works, else the fastest exact one
    CUDNN = "cuDNN"
    FLASH = "flash"
    EFFICIENT = "efficient"
    MATH = "math"
    SAGE = "sage"  # quantised (SageAttention)


_BACKENDS = {
    AttentionKernel.CUDNN: SDPBackend.CUDNN_ATTENTION,
    AttentionKernel.FLASH: SDPBackend.FLASH_ATTENTION,
    AttentionKernel.EFFICIENT: SDPBackend.EFFICIENT_ATTENTION,
}


@lru_cache
def find_kernel(kernel: AttentionKernel, device: torch.device, dtype: torch.dtype, head_dim: int) -> Attend:
    """The attention function of `kernel` if it works on this machine, or of the next best, with a line in the log.

    A kernel works if it agrees with the plain formula on a small example. Each is tried once a process.
    """
    if kernel in (AttentionKernel.AUTO, AttentionKernel.FAST) and device.type != "cuda":
        return torch_attention(device)
    for candidate in _candidates(kernel, device):
        failure = _failure(candidate, device, dtype, head_dim)
        if failure is None:
            logger.info("Attention runs on the %s kernel.", candidate.value)
            return _attend(candidate)
        level = (
            logging.INFO if kernel is AttentionKernel.FAST and candidate is AttentionKernel.SAGE else logging.WARNING
        )
        logger.log(level, "The %s attention kernel is replaced: %s", candidate.value, failure)
    return _math if device.type == "cuda" else torch_attention(device)


def _candidates(kernel: AttentionKernel, device: torch.device) -> list[AttentionKernel]:
    if device.type != "cuda":
        return [kernel]
    exact = [AttentionKernel.FLASH, AttentionKernel.CUDNN, AttentionKernel.EFFICIENT]
    if torch.cuda.get_device_capability(device) >= HOPPER:
        exact = [AttentionKernel.CUDNN, AttentionKernel.FLASH, AttentionKernel.EFFICIENT]
    if kernel is AttentionKernel.AUTO:
        return exact
    if kernel is AttentionKernel.FAST:
        return [AttentionKernel.SAGE, *exact]
    return [kernel, *(other for other in exact if other is not kernel)]


def _failure(kernel: AttentionKernel, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """The reason that `kernel` cannot be used here; None if it can."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, n, head_dim, generator=generator).to(device, dtype) for n in (96, 257, 257))
    try:
        output = _attend(kernel)(query, key, value)
    except ImportError:
        return "it is not installed (pip install sageattention)."
    except Exception as error:  # noqa: BLE001 - a probe: kernels that others compile here fail with whatever they like
        return str(error).partition("\n")[0] or type(error).__name__
    exact = _attend(AttentionKernel.MATH)(query.float(), key.float(), value.float())
    error = (output.float() - exact).abs().max().item()
    tolerance = COARSE_TOLERANCE if kernel is AttentionKernel.SAGE else TOLERANCES.get(dtype, COARSE_TOLERANCE)
    return None if error <= tolerance else f"it is off by {error:.2g} on a small example."


def _attend(kernel: AttentionKernel) -> Attend:
    return _CUSTOM[kernel] if kernel in _CUSTOM else partial(_native, backend=_BACKENDS[kernel])


def _native(query: Tensor, key: Tensor, value: Tensor, backend: SDPBackend) -> Tensor:
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(query, key, value)


def _sage(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    from sageattention import sageattn  # optional, and it compiles kernels on import

    return sageattn(query, key, value, tensor_layout="HND", is_causal=False)


def _math(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return attend_in_chunks(partial(_native, backend=SDPBackend.MATH), query, key, value)


_CUSTOM = {AttentionKernel.MATH: _math, AttentionKernel.SAGE: _sage}
