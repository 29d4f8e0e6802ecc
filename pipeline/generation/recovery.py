"""The three recoveries of a run: streamed blocks, plain attention, tiles for the VAE; each is said in the log.

Two of them are used as `for attempt in attempts(...): with attempt: ...`: the body is run again where its error can be
mended, and adds no call between the run and its fault.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Concatenate, ParamSpec, TypeVar

from ..acceleration.attention_kernels import AttentionKernel, find_kernel
from ..conditioning.conditioning import Conditioning
from ..errors import NumericalError
from ..host import Host
from ..memory.out_of_memory import is_out_of_memory
from ..memory.placement import GB, PlacedTransformer, resident
from ..models.transformer.model import MultiTalkTransformer

logger = logging.getLogger(__name__)

T = TypeVar("T")
P = ParamSpec("P")


class Attempt:
    """A try, to be entered, whose error is kept rather than raised if another try may mend it."""

    def __init__(self, mends: Callable[[BaseException], bool]):
        self._mends = mends
        self.error: BaseException | None = None

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None or not self._mends(error):
            return False
        self.error = error.with_traceback(None)  # whose frames would hold the failed try's tensors
        return True


def streaming_attempts(placement: PlacedTransformer) -> Iterator[AbstractContextManager[object]]:
    """Tries of a forward: as it is, then, if the device's memory ran out, with all blocks streamed, from then on."""
    first = Attempt(is_out_of_memory)
    yield first
    if first.error is not None:
        if not placement.stream_all():
            raise first.error
        yield nullcontext()


def attention_attempts(transformer: MultiTalkTransformer, host: Host) -> Iterator[AbstractContextManager[object]]:
    """Tries of sampling a window: as it is, then, if numbers went bad, with plain attention, from then on."""
    first = Attempt(lambda error: isinstance(error, NumericalError))
    yield first
    if first.error is None:
        return
    head_dim = transformer.config.attention_head_dim
    plain = find_kernel(AttentionKernel.MATH, host.device, transformer.compute_dtype, head_dim)
    if transformer.blocks[0].attn1.attend is plain:
        raise first.error
    logger.warning("%s The window is made again with the math attention kernel.", first.error)
    transformer.set_attention(plain)
    yield nullcontext()


@dataclass(frozen=True)
class Coders:
    """The VAE and the image encoder, on the device while they work, in tiles where whole frames do not fit.

    Attributes:
        conditioning: holds them.
        placement: of the transformer, which steps aside for them.
        num_bytes: what they take on the device with whole frames.
    """

    conditioning: Conditioning
    placement: PlacedTransformer
    num_bytes: int
    host: Host

    def run(self, work: Callable[Concatenate[Conditioning, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`work(conditioning, ...)`; after a lack of memory once more, with a VAE that works on tiles."""
        can_tile = self.conditioning.can_tile
        if self.placement.make_room(self.num_bytes) or not can_tile:
            try:
                with self._on_device():
                    return work(self.conditioning, *args, **kwargs)
            except (RuntimeError, MemoryError) as error:
                if not can_tile or not is_out_of_memory(error):
                    raise
        logger.warning(
            "There is too little memory for the VAE, which takes about %.1f GB: it works on tiles in this window, "
            "which may show a little.",
            self.num_bytes / GB,
        )
        self.placement.release()
        with self._on_device():
            return work(self.conditioning.tiled(), *args, **kwargs)

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """Keeps our own coders on the host's device; others look after themselves."""
        with ExitStack() as stack:
            for network in self.conditioning.networks:
                stack.enter_context(resident(network, self.host))
            yield
