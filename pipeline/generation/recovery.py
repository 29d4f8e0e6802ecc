"""The three recoveries of a run: streamed blocks, plain attention, tiles for the VAE; each is said in the log.

Two of them are used as `for attempt in attempts(...): with attempt: ...`: the body is run again where its error can be
mended, and adds no call between the run and its fault.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Concatenate, ParamSpec, TypeVar

from torch import nn

from ..acceleration.attention_kernels import AttentionKernel, find_kernel
from ..conditioning.conditioning import Conditioning
from ..errors import NumericalError
from ..host import Host
from ..memory.out_of_memory import is_out_of_memory
from ..memory.placement import GB, MovableWeights, PlacedTransformer, decode_bytes, num_bytes, resident
from ..models.transformer.model import MultiTalkTransformer
from ..sampling.agreement import Peers

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


def streaming_attempts(placement: PlacedTransformer, ranks: Peers) -> Iterator[AbstractContextManager[object]]:
    """Tries of a forward: as it is, then, if a device's memory ran out, with all blocks streamed, from then on."""
    first = Attempt(is_out_of_memory)
    yield first
    if first.error is not None:
        if not ranks.any(placement.stream_all):
            raise first.error
        yield nullcontext()


def attention_attempts(
    transformer: MultiTalkTransformer, host: Host, ranks: Peers
) -> Iterator[AbstractContextManager[object]]:
    """Tries of sampling a window: as it is, then, if numbers went bad, with plain attention, from then on."""
    first = Attempt(lambda error: isinstance(error, NumericalError))
    yield first
    if first.error is None:
        return
    head_dim = transformer.config.attention_head_dim
    plain = find_kernel(AttentionKernel.MATH, host.device, transformer.compute_dtype, head_dim)
    if not ranks.any(lambda: transformer.blocks[0].attn1.attend is not plain):
        raise first.error
    logger.warning("%s The window is made again with the math attention kernel.", first.error)
    transformer.set_attention(plain)
    yield nullcontext()


@dataclass(frozen=True)
class Coders:
    """The VAE and the image encoder, on the device while they work, in tiles where whole frames do not fit.

    Attributes:
        conditioning: holds them.
        placement: the transformer's weights, of which as much step aside for them as they need.
    """

    conditioning: Conditioning
    placement: MovableWeights
    host: Host

    def encode(self, work: Callable[Concatenate[Conditioning, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`work(conditioning, ...)` with both on the device; after a lack of memory once more, on tiles."""
        return self._run(self.conditioning.networks, lambda conditioning: work(conditioning, *args, **kwargs))

    def decode(self, work: Callable[Concatenate[Conditioning, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same with the VAE alone."""
        return self._run(self.conditioning.vae_networks, lambda conditioning: work(conditioning, *args, **kwargs))

    def _run(self, networks: Sequence[nn.Module], work: Callable[[Conditioning], T]) -> T:
        can_tile, vae_bytes = self.conditioning.can_tile, self._vae_bytes(networks)
        if self.placement.make_room(vae_bytes) or not can_tile:
            try:
                with self._on_device(networks):
                    return work(self.conditioning)
            except (RuntimeError, MemoryError) as error:
                if not can_tile or not is_out_of_memory(error):
                    raise
        logger.warning(
            "There is too little memory for the VAE, which takes about %.1f GB: it works on tiles in this window, "
            "which may show a little.",
            vae_bytes / GB,
        )
        self.placement.release()
        with self._on_device(networks):
            return work(self.conditioning.tiled())

    def _vae_bytes(self, networks: Sequence[nn.Module]) -> int:
        """Bytes that the VAE takes with whole frames and these weights; another's VAE is taken for ours."""
        itemsize = next(networks[0].parameters()).dtype.itemsize if networks else 4
        return sum(map(num_bytes, networks)) + decode_bytes(self.conditioning.height, self.conditioning.width, itemsize)

    @contextmanager
    def _on_device(self, networks: Sequence[nn.Module]) -> Iterator[None]:
        with ExitStack() as stack:
            for network in networks:
                stack.enter_context(resident(network, self.host))
            yield
