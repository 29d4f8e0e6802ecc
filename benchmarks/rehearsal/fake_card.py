"""A fake CUDA card for a CPU build of torch: its tensors have shapes, dtypes and a device, but no numbers.

    with FakeCard(memory=24 * GB) as card:
        transformer = fake_transformer(num_layers=2)
        with card.record() as figures:
            transformer(...)
    print(figures.tflop, figures.peak_bytes, figures.syncs)

All that a real card would be asked to do is counted; beyond the card's memory `torch.OutOfMemoryError` is raised.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.cpp_extension import include_paths

from pipeline.memory.block_streaming import copy_stream

from .ledger import Dispatch, Figures, calling_place

GB = 10**9
GUARD_SOURCE = Path(__file__).with_name("device_guard.cpp")


def reason_against() -> str | None:
    """The reason that there can be no fake card on this machine; None where there can."""
    if torch.version.cuda or getattr(torch.version, "hip", None):
        return "torch is no CPU build: a fake card cannot stand beside a real one"
    if shutil.which("g++") is None:
        return "g++ is missing: it compiles the fake card's device guard"
    return None


class FakeCard:
    """Context in which `cuda` is a card of so much memory.

    Args:
        memory: bytes.
        capability: of the chip; (9, 0) is Hopper.

    Attributes:
        live: bytes of the tensors that are on the card.
        events: what streams and the host waited for, in order: (who, what, whom).
        streams: names of the streams that were made.
        unfused: operators without a fused kernel for their arguments.
        pinned: bytes of host memory that were pinned.
    """

    def __init__(self, memory: int = 80 * GB, capability: tuple[int, int] = (9, 0)):
        self.memory, self.capability = memory, capability
        self.live, self.pinned = 0, 0
        self.events: list[tuple[str, str, str]] = []
        self.streams: list[str] = []
        self.unfused: list[str] = []
        self._sizes: dict[int, int] = {}  # of live storages
        self._recordings: list[Figures] = []
        self._stack = ExitStack()

    def __enter__(self) -> FakeCard:
        ctypes.CDLL(str(_compiled_guard()))
        self._stack.callback(copy_stream.cache_clear)  # the engine keeps a stream of this card
        current = [self._stream("main")]

        @contextmanager
        def enter(stream: FakeStream) -> Iterator[None]:
            current.append(stream)
            yield
            current.pop()

        def pin(tensor: Tensor, *_: Any) -> Tensor:
            self.pinned += tensor.nbytes
            return tensor.clone()

        def note_use(tensor: Tensor, stream: FakeStream) -> None:
            self.events.append(("tensor", "is used by", stream.name))

        replacements = {
            "torch.cuda.Stream": lambda *_, **__: self._stream(f"side {len(self.streams)}"),
            "torch.cuda.stream": enter,
            "torch.cuda.current_stream": lambda *_: current[-1],
            "torch.cuda.get_device_capability": lambda *_: self.capability,
            "torch.cuda.get_device_name": lambda *_: "fake card",
            "torch.cuda.mem_get_info": lambda *_: (self.memory - self.live, self.memory),
            "torch.cuda.synchronize": lambda *_: None,
            "torch.cuda.reset_peak_memory_stats": lambda *_: None,
            "torch.cuda.max_memory_allocated": lambda *_: self.live,
            "torch.cuda.memory_reserved": lambda *_: 0,
            "torch.cuda.memory_allocated": lambda *_: 0,
            "torch.cuda.is_bf16_supported": lambda *_, **__: self.capability >= (8, 0),
            "torch._C._conv_determine_backend_memory_format": _convolution_layout,
            "torch.Tensor.pin_memory": pin,
            "torch.Tensor.record_stream": note_use,
            "torch.nn.Module.to": _move_module,
        }
        for target, replacement in replacements.items():
            self._stack.enter_context(mock.patch(target, replacement))
        self._stack.enter_context(_data_with_device())
        self._stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        self._stack.enter_context(FusedKernels(self))
        self._stack.enter_context(Dispatch(self))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    @contextmanager
    def record(self) -> Iterator[Figures]:
        """The figures of what runs inside."""
        figures = Figures(self.live, self.live)
        self._recordings.append(figures)
        try:
            yield figures
        finally:
            self._recordings.remove(figures)
            figures.end_bytes = self.live

    @property
    def recordings(self) -> Sequence[Figures]:
        """Those that are under way."""
        return self._recordings

    def allocate(self, tensor: Tensor) -> None:
        """Counts a tensor's memory until it is gone.

        Raises:
            torch.OutOfMemoryError: there is not so much left.
        """
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._sizes:
            return
        if self.live + size > self.memory:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory: {self.live / GB:.2f} and {size / GB:.2f} of {self.memory / GB:.2f} GB at "
                f"{calling_place()}."
            )
        self._sizes[key] = size
        self.live += size
        weakref.finalize(storage, self._free, key)
        for figures in self._recordings:
            if self.live > figures.peak_bytes:
                figures.peak_bytes, figures.peak_place = self.live, calling_place()

    def _free(self, key: int) -> None:
        self.live -= self._sizes.pop(key)

    def _stream(self, name: str) -> FakeStream:
        self.streams.append(name)
        return FakeStream(name, self.events)


class FakeStream:
    """A stream that writes down what it waits for."""

    def __init__(self, name: str, events: list[tuple[str, str, str]]):
        self.name, self._events = name, events

    def wait_stream(self, other: FakeStream) -> None:
        self._events.append((self.name, "waits for", other.name))

    def record_event(self, event: Any = None) -> FakeStream:
        """An event, which waits as its stream would."""
        return FakeStream(f"event of {self.name}", self._events)

    def synchronize(self) -> None:
        self._events.append(("host", "waits for", self.name))


class FusedKernels(TorchFunctionMode):
    """Fused attention and RMS norm on the card: a CPU build can shape them, but would not choose them."""

    def __init__(self, card: FakeCard):
        super().__init__()
        self.card = card

    def __torch_function__(
        self, function: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Called by torch instead of `function`."""
        kwargs = kwargs or {}
        first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if first is not None and first.device.type == "cuda":
            if function is nn.functional.scaled_dot_product_attention:
                return self._attention(*args, **kwargs)
            if function is nn.functional.rms_norm:
                return self._rms_norm(function, *args, **kwargs)
        return function(*args, **kwargs)

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any
    ) -> Tensor:
        if attn_mask is None and query.dtype in (torch.bfloat16, torch.float16):
            strides = [tensor.stride(-1) for tensor in (query, key, value)]
            assert strides == [1, 1, 1], f"flash attention wants k innermost, got strides {strides}"
            return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
        self.card.unfused.append(f"attention of {query.dtype} with{'' if attn_mask is not None else 'out'} mask")
        return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, False)[0]

    def _rms_norm(
        self, function: Callable[..., Any], x: Tensor, shape: Sequence[int], weight: Tensor | None = None,
        eps: float | None = None,
    ) -> Tensor:  # fmt: skip
        if weight is not None and x.dtype == weight.dtype:
            return fused_rms_norm(x.contiguous(), weight)
        self.card.unfused.append(f"RMS norm of {x.dtype} with a weight of {None if weight is None else weight.dtype}")
        return function(x, shape, weight, eps)


@torch.library.custom_op("multitalk_rehearsal::fused_rms_norm", mutates_args=())
def fused_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """RMS norm in one kernel, as torch has it on cards since 2.8."""
    return torch.empty_like(x)


@fused_rms_norm.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(x)


def fake_weights(module: nn.Module, dtype: torch.dtype = torch.bfloat16, device: str = "cuda") -> None:
    """Gives a module of the meta device fake parameters and buffers; those of integers keep their dtype."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=_dtype_of(parameter, dtype), device=device)
                part._parameters[name] = nn.Parameter(fake, requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=_dtype_of(buffer, dtype), device=device)


def _convolution_layout(x: Tensor, weight: Tensor, *_: Any) -> torch.memory_format:
    """The layout of a convolution's output by cuDNN: channels last where its input has them so."""
    layout = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    return layout if x.is_contiguous(memory_format=layout) else torch.contiguous_format


def _dtype_of(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if tensor.dtype.is_floating_point else tensor.dtype


def _move_module(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """`Module.to`, which swaps the data of fake parameters instead of the parameters."""
    device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.to(device, dtype if dtype and tensor.dtype.is_floating_point else None)
    return module


@contextmanager
def _data_with_device() -> Iterator[None]:
    """Context in which a fake tensor that is given other data takes its device too."""
    data: Any = Tensor.data

    def put(tensor: FakeTensor, value: FakeTensor) -> None:
        data.__set__(tensor, value)
        tensor.fake_device = value.fake_device

    FakeTensor.data = property(data.__get__, put)  # type: ignore[assignment]
    try:
        yield
    finally:
        del FakeTensor.data


def _compiled_guard() -> Path:
    """The device guard as a library, compiled once for each version of torch."""
    folder = Path(tempfile.gettempdir()) / f"multitalk-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / f"device_guard_{torch.__version__}.so"
    if not library.exists():
        part = library.with_suffix(f".{os.getpid()}")
        includes = [f"-I{path}" for path in include_paths()]
        options = [
            "-shared",
            "-fPIC",
            "-std=c++20",
            "-O1",
            f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
        ]
        link = [f"-L{Path(torch.__file__).parent / 'lib'}", "-lc10"]
        subprocess.run(["g++", *options, *includes, str(GUARD_SOURCE), "-o", str(part), *link], check=True)
        part.replace(library)
    return library
