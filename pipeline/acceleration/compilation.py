"""Compiled blocks: a choice, a probe, and limits for a process that samples many sizes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from ..choice import Choice

if TYPE_CHECKING:
    from ..models.transformer.model import MultiTalkTransformer

logger = logging.getLogger(__name__)

MIN_STEPS = 9  # of `auto`: compiling takes a minute, which few-step runs do not win back
MAX_GRAPHS = 64  # of one function: each size, number of speakers and dtype has its own; torch gives up after 8


class Compile(Choice):
    """Compilation of the transformer's blocks with `torch.compile`."""

    AUTO = "auto"  # on a GPU, in runs of more than 8 steps
    ON = "on"
    OFF = "off"

    def applies(self, device: torch.device, steps: int) -> bool:
        """True where a run of so many steps is to be compiled."""
        return self is Compile.ON or (self is Compile.AUTO and device.type == "cuda" and steps >= MIN_STEPS)


@contextmanager
def compiled(transformer: MultiTalkTransformer, device: torch.device) -> Iterator[None]:
    """Context in which the blocks are compiled; where the compiler does not work, they run as they are.

    A block that fails to compile later, of all sizes, runs as it is too; torch says so in the log.
    """
    failure = compiler_failure(device)
    if failure is not None:
        logger.warning("The blocks are not compiled: %s", failure)
        yield
        return
    before = [block._compiled_call_impl for block in transformer.blocks]
    transformer.compile_repeated_blocks(dynamic=False)
    try:
        with torch._dynamo.config.patch(_limits()):
            yield
    finally:
        for block, call in zip(transformer.blocks, before, strict=True):
            block._compiled_call_impl = call  # torch has no public way back from `Module.compile`


@lru_cache
def compiler_failure(device: torch.device) -> str | None:
    """The reason that nothing can be compiled for `device`, such as a missing Triton; None where it works."""
    try:
        torch.compile(_probe, dynamic=False)(torch.ones(64, device=device))
    except Exception as error:  # noqa: BLE001 - a probe: compilers of others fail with whatever they like
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return None


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + x.cos()


def _limits() -> dict[str, Any]:
    """Settings of the compiler by its name for them in this version of torch."""
    name = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
    return {name: MAX_GRAPHS, "suppress_errors": True}
