"""The ledger of a fake card: operators, FLOPs, bytes, kernels and waits of the host."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

if TYPE_CHECKING:
    from .fake_card import FakeCard

ENGINE = str(Path(__file__).resolve().parents[2] / "pipeline") + "/"

ATTENTION = {
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
}  # fmt: skip
MATMUL = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "linear", "_scaled_mm"}
COPY = {"_to_copy", "clone", "copy_", "cat", "stack", "contiguous", "_reshape_copy"}
OVERWRITES = {"copy_", "fill_", "zero_"}  # in place, without reading what was there
ALLOCATION = {"empty", "empty_like", "new_empty", "empty_strided"}
READS = {"_local_scalar_dense", "item", "equal", "is_nonzero"}  # the host waits for a number
WAITS = {"nonzero", "masked_select", "unique_dim", "_unique2"}  # the host waits for a shape


@dataclass
class Figures:
    """The work of a card while it was recorded. Counters by kind: attention, matmul, convolution, copy, elementwise.

    Attributes:
        flops: by operator.
        kernels: launches by kind.
        bytes: read and written by kind.
        bytes_by_place: the same by kind, operator and line of the engine.
        syncs: waits of the host by operator and line.
        uploads: bytes from the host by line and whether the copy is asynchronous.
        downloads: bytes to the host by line.
        wide: operators that wrote float64 on the card, by operator and line.
        start_bytes: live when the recording began.
        peak_bytes: the most that was live.
        peak_place: the line that allocated the peak's last tensor.
        end_bytes: live when it ended.
    """

    start_bytes: int = 0
    peak_bytes: int = 0
    peak_place: str = ""
    end_bytes: int = 0
    flops: Counter[str] = field(default_factory=Counter)
    kernels: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    bytes_by_place: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    syncs: Counter[tuple[str, str]] = field(default_factory=Counter)
    uploads: Counter[tuple[str, bool]] = field(default_factory=Counter)
    downloads: Counter[str] = field(default_factory=Counter)
    wide: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def tflop(self) -> float:
        """Floating point operations in 10^12."""
        return self.flops.total() / 1e12

    @property
    def work_bytes(self) -> int:
        """The peak above what stays."""
        return self.peak_bytes - self.end_bytes

    @property
    def decoding_bytes(self) -> int:
        """Bytes read and written to decode packed weights, by lines of `weights/` other than matrix products."""
        places = self.bytes_by_place.items()
        return sum(count for (kind, _, place), count in places if kind != "matmul" and place.startswith("weights/"))


class Dispatch(TorchDispatchMode):
    """Counts every operator that touches the card, and answers the host where it reads a number."""

    def __init__(self, card: FakeCard):
        super().__init__()
        self.card = card

    def __torch_dispatch__(
        self, operator: Any, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Called by torch instead of `operator`."""
        kwargs = kwargs or {}
        name = operator._schema.name.split("::")[-1]
        inputs = _tensors((args, kwargs))
        inputs_on_card = [tensor for tensor in inputs if tensor.device.type == "cuda"]
        if inputs_on_card and name in READS | WAITS:
            self._count("syncs", (name, calling_place()))
        if name in READS and (name == "equal" or any(_has_no_number(tensor) for tensor in inputs)):
            return _number(name, inputs[0])
        if operator.namespace == "aten" and torch.is_inference_mode_enabled() and operator._can_decompose():
            with self:
                result = operator.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = operator(*args, **kwargs)
        outputs = _tensors(result)
        self._count_copies(name, args, kwargs, inputs, outputs)
        outputs_on_card = [tensor for tensor in outputs if tensor.device.type == "cuda"]
        if (inputs_on_card or outputs_on_card) and not _is_view(operator, inputs, outputs):
            self._count_kernel(operator, name, args, kwargs, inputs_on_card, outputs_on_card, result)
        return result

    def _count_kernel(
        self, operator: Any, name: str, args: tuple, kwargs: dict, inputs: list[Tensor], outputs: list[Tensor],
        result: Any,
    ) -> None:  # fmt: skip
        for tensor in outputs:
            self.card.allocate(tensor)
            if tensor.dtype in (torch.float64, torch.complex128):
                self._count("wide", (name, calling_place()))
        if operator._overloadpacket in flop_registry:
            flops = flop_registry[operator._overloadpacket](*args, **kwargs, out_val=result)
            self._count("flops", name, flops)
        if name in ALLOCATION:
            return
        kind = _kind(name)
        is_counted = operator._schema.is_mutable and (not name.endswith("_") or name in OVERWRITES)  # as an argument
        moved = sum(map(_num_bytes, inputs)) + (0 if is_counted else sum(map(_num_bytes, outputs)))
        self._count("kernels", kind)
        self._count("bytes", kind, moved)
        if self.card.recordings:
            self._count("bytes_by_place", (kind, name, calling_place()), moved)

    def _count_copies(self, name: str, args: tuple, kwargs: dict, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        if name not in ("_to_copy", "copy_") or not self.card.recordings:
            return
        from_host = [tensor for tensor in inputs if tensor.device.type == "cpu"]
        if from_host and any(tensor.device.type == "cuda" for tensor in outputs):
            is_asynchronous = bool(kwargs.get("non_blocking") or (len(args) > 2 and args[2] is True))
            self._count("uploads", (calling_place(), is_asynchronous), from_host[-1].nbytes)
        if name == "_to_copy" and inputs[0].device.type == "cuda" and outputs[0].device.type == "cpu":
            self._count("downloads", calling_place(), outputs[0].nbytes)

    def _count(self, counter: str, key: Any, number: int = 1) -> None:
        for figures in self.card.recordings:
            getattr(figures, counter)[key] += number


def calling_place() -> str:
    """`file:line` of the innermost frame inside the engine, by its path there; "" outside of it."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(ENGINE):
            return f"{path.removeprefix(ENGINE)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _has_no_number(tensor: Tensor) -> bool:
    return isinstance(tensor, FakeTensor) and (tensor.device.type == "cuda" or tensor.constant is None)


def _number(name: str, tensor: Tensor) -> bool | float:
    """An answer that lets a run go on: checks hold, kernels agree with the formula, other numbers are 1."""
    if name == "equal" or tensor.dtype is torch.bool:
        return True
    return 0.0 if calling_place().startswith("acceleration/") else 1


def _is_view(operator: Any, inputs: list[Tensor], outputs: list[Tensor]) -> bool:
    if operator._schema.is_mutable:
        return False
    storages = {tensor.untyped_storage()._cdata for tensor in inputs}
    return all(tensor.untyped_storage()._cdata in storages for tensor in outputs)


def _kind(name: str) -> str:
    if name in ATTENTION:
        return "attention"
    if name in MATMUL:
        return "matmul"
    if name in COPY:
        return "copy"
    return "convolution" if "conv" in name else "elementwise"


def _num_bytes(tensor: Tensor) -> int:
    """Bytes that are really there: expanded axes count once."""
    lengths = (length for length, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or length == 1)
    return functools.reduce(int.__mul__, lengths, tensor.element_size())
