"""Matrix products in float8: weights as their file stores them, activations rounded row by row; nothing is decoded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

logger = logging.getLogger(__name__)

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
ADA = (8, 9)  # the first cards that multiply float8
TOLERANCE = 0.06  # relative, of a product with random numbers: 0.027 by the activations' 3 bits, measured on a CPU

Product = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""`x (w s)^T + b` of bfloat16 `n in`, float8 `out in`, float32 scales `out 1` and bfloat16 `out`; in bfloat16."""


@runtime_checkable
class Fp8Layer(Protocol):
    """A layer that may multiply its stored weight.

    Attributes:
        fp8_product: the product to be used; None decodes the weight.
        stores_fp8: its weight is stored as float8 with float32 scales, in sides that the kernels take.
    """

    fp8_product: Product | None

    @property
    def stores_fp8(self) -> bool: ...


@contextmanager
def fp8_products(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Context in which layers on float8 weights multiply them as they are, if `device` can; else they are decoded."""
    layers = [layer for layer in network.modules() if isinstance(layer, Fp8Layer) and layer.stores_fp8]
    product = find_product(device) if layers else None
    for layer in layers:
        layer.fp8_product = product
    try:
        yield
    finally:
        for layer in layers:
            layer.fp8_product = None


@lru_cache
def find_product(device: torch.device) -> Product | None:
    """The product if it works on `device`, which is tried once a process; None, with a line in the log, if not."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < ADA:
        logger.info("Float8 weights are decoded: %s has no products of float8.", device)
        return None
    failure = probe_failure(device)
    if failure is not None:
        logger.warning("Float8 weights are decoded: %s", failure)
        return None
    logger.info("Float8 weights are multiplied as they are stored.")
    return scaled_product


def scaled_product(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """`x (w s)^T + b` with each row of x rounded to float8: `x ~ q r`, `r = max |x| / 448`, and `(q w^T) r s + b`."""
    row_scale = (torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True) / LARGEST).clamp(min=1e-12)
    rounded = torch.div(x, row_scale, out=torch.empty_like(x, dtype=FP8))
    return torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage] - torch has no public name for it
        rounded,
        weight.T,
        scale_a=row_scale.float(),
        scale_b=scale.T.contiguous(),
        bias=bias,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


def probe_failure(device: torch.device) -> str | None:
    """The reason that the product does not work on `device`; None where it is near the decoded one."""
    generator = torch.Generator().manual_seed(0)
    x, bias, numbers = (torch.randn(shape, generator=generator).to(device) for shape in ((96, 64), (32,), (32, 64)))
    x, bias, weight = x.bfloat16(), bias.bfloat16(), numbers.to(FP8)
    scale = torch.linspace(0.5, 2, len(weight), device=device)[:, None]
    exact = linear(x.float(), weight.float() * scale, bias.float())
    try:
        output = scaled_product(x, weight, scale, bias)
    except Exception as error:  # noqa: BLE001 - a probe: torch's kernels fail with whatever they like
        return str(error).partition("\n")[0] or type(error).__name__
    error = ((output.float() - exact).norm() / exact.norm()).item()
    return None if error <= TOLERANCE else f"their product is off by {error:.2g} on a small example."
