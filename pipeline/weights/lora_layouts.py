"""The names that trainers give to a LoRA's tensors, and the update of a weight that the tensors make."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from ..errors import WeightsError
from .key_maps import native_transformer_key

PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "pipe.dit.", "unet.",
            "lora_unet__", "lora_unet_", "lora_transformer_", "lycoris_", "model.")  # fmt: skip
ENDING = re.compile(
    r"(?P<path>.*?)\.?(?P<role>lora_down|lora_A|lora\.down|lora_up|lora_B|lora\.up|alpha|diff_b|diff_m|diff"
    r"|hada_w[12]_[ab]|lokr_w[12](?:_[ab])?)(?:\.(?P<adapter>(?!weight$)[^.]+))?(?:\.weight)?$"
)
DOWN, UP, ALPHA, DIFF, BIAS_DIFF, MODULATION_DIFF = "down", "up", "alpha", "diff", "diff_b", "diff_m"
ROLES = {"lora_down": DOWN, "lora_A": DOWN, "lora.down": DOWN, "lora_up": UP, "lora_B": UP, "lora.up": UP}
RANK_ROLES = (DOWN, "hada_w1_b", "lokr_w1_b", "lokr_w2_b")  # whose rows are as many as the rank
MODULATION = "scale_shift_table"

Tensors = Mapping[str, Tensor]
"""A layer's tensors by role: `DOWN`, `UP`, ..., "hada_w1_a", "lokr_w1"."""


@dataclass(frozen=True)
class LoraKey:
    """The parts of a tensor's name.

    Attributes:
        path: of the layer, without the trainer's prefix.
        role: of the tensor.
        adapter: PEFT's name of the adapter; empty without one.
    """

    path: str
    role: str
    adapter: str = ""


def split_key(key: str) -> LoraKey | None:
    """The parts of a name; None for a tensor that is no part of an update."""
    match = ENDING.match(key)
    if match is None:
        return None
    adapter = match["adapter"] or ""
    if adapter not in ("", "default") and match["role"] not in ROLES:  # PEFT names LoRAs alone
        return None
    path = match["path"]
    for prefix in PREFIXES:  # some trainers put two in front
        path = path.removeprefix(prefix)
    return LoraKey(path, ROLES.get(match["role"], match["role"]), adapter)


class LayerNames:
    """Our names of layers and modulations, by their native or diffusers ones, written with dots or underscores.

    Args:
        parameters: our names of all weights, such as "blocks.0.attn1.to_q.weight".
    """

    def __init__(self, parameters: Iterable[str]):
        self._names: dict[str, str] = {}
        for name in dict.fromkeys(map(_layer_of, parameters)):
            native = native_transformer_key(name)
            for spelling in (name, native, native.removesuffix(".modulation")):  # diff_m has the block or head alone
                self._names.setdefault(spelling.replace(".", "_"), name)

    def find(self, path: str) -> str | None:
        """Our name, or None."""
        return self._names.get(path.replace(".", "_"))


def _layer_of(parameter: str) -> str:
    return parameter if parameter.endswith(MODULATION) else parameter.rpartition(".")[0]


class Update(nn.Module):
    """Summand of a weight: `factor` times the product of `parts`, `rows columns` in float32 (or as the weight)."""

    def __init__(self, parts: Tensors, factor: float):
        super().__init__()
        self.factor = factor
        self.parts = nn.ParameterDict({role: nn.Parameter(part, requires_grad=False) for role, part in parts.items()})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight that this fits."""
        raise NotImplementedError

    def forward(self) -> Tensor:
        """The update, in float32."""
        raise NotImplementedError

    @property
    def is_low_rank(self) -> bool:
        """It can be multiplied without being made, by `add_product`."""
        return False

    def add_product(self, output: Tensor, x: Tensor) -> None:
        """Adds the product with `x` (`n in`) to that of the weight, `n out`."""
        raise NotImplementedError

    def add_to(self, weight: Tensor) -> Tensor:
        """`weight` with the update."""
        return weight + self()

    def extra_repr(self) -> str:
        return repr(self.factor)  # tells the same LoRA at two strengths apart

    def _part(self, role: str) -> Tensor:
        return self.parts[role].float()


class Full(Update):
    """A whole difference."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.parts[DIFF].shape)

    def forward(self) -> Tensor:
        return self.factor * self._part(DIFF)


class LowRank(Update):
    """`B A` (LoRA, arXiv:2106.09685)."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parts[UP].shape[0], self.parts[DOWN].shape[1]

    def forward(self) -> Tensor:
        return self.factor * (self._part(UP) @ self._part(DOWN))

    @property
    def is_low_rank(self) -> bool:
        return True

    def add_to(self, weight: Tensor) -> Tensor:
        """In 16 bits without the update ever being written."""
        if weight.dtype.itemsize > 2:
            return super().add_to(weight)
        up, down = (self.parts[role].to(weight.dtype) for role in (UP, DOWN))
        return torch.addmm(weight, up, down, alpha=self.factor)

    def add_product(self, output: Tensor, x: Tensor) -> None:
        """Adds the product with `x` (`n in`) to that of the weight, `n out`."""
        up, down = (self.parts[role].to(x.dtype) for role in (UP, DOWN))
        output.addmm_(x @ down.T, up.T, alpha=self.factor)


class Hadamard(Update):
    """`(B1 A1) o (B2 A2)` (LoHa, arXiv:2108.06098)."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parts["hada_w1_a"].shape[0], self.parts["hada_w1_b"].shape[1]

    def forward(self) -> Tensor:
        first, second = (self._part(f"hada_w{i}_a") @ self._part(f"hada_w{i}_b") for i in (1, 2))
        return self.factor * first * second


class Kronecker(Update):
    """`W1 x W2`, each whole or of low rank (LoKr, arXiv:2212.10650)."""

    @property
    def shape(self) -> tuple[int, ...]:
        (rows, columns), (inner_rows, inner_columns) = (self._shape_of(f"lokr_w{i}") for i in (1, 2))
        return rows * inner_rows, columns * inner_columns

    def forward(self) -> Tensor:
        return self.factor * torch.kron(self._matrix("lokr_w1"), self._matrix("lokr_w2"))

    def _matrix(self, role: str) -> Tensor:
        return self._part(role) if role in self.parts else self._part(f"{role}_a") @ self._part(f"{role}_b")

    def _shape_of(self, role: str) -> tuple[int, int]:
        if role in self.parts:
            return tuple(self.parts[role].shape)
        return self.parts[f"{role}_a"].shape[0], self.parts[f"{role}_b"].shape[1]


def check_whole(name: str, layer: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises `WeightsError` where tensors of these shapes, by role, make no update of a layer."""
    if not _is_whole(frozenset(shapes.items())):
        raise WeightsError(f"{name} is damaged: the tensors of {layer} do not fit together; download it again.")


@lru_cache(maxsize=256)  # a LoRA has hundreds of layers of a few shapes
def _is_whole(shapes: frozenset[tuple[str, tuple[int, ...]]]) -> bool:
    """True if tensors without numbers can be multiplied as an update multiplies its own."""
    try:
        tensors = {role: empty_part(role, shape) for role, shape in shapes}
        return all(update.shape == tuple(update().shape) for update in _updates(tensors, 1.0, 1.0))
    except (RuntimeError, LookupError, AttributeError, ValueError, ArithmeticError):
        return False  # a factor is missing, or misshapen, or of another rank


def empty_part(role: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor without numbers in the place of a LoRA's; an alpha is 1."""
    return torch.ones(()).expand(shape) if role == ALPHA else torch.empty(shape, device="meta")


def layer_updates(layer: str, tensors: Tensors, strength: float, default_scale: float) -> Iterator[tuple[str, Update]]:
    """The updates of a layer, each with the name of its weight: `strength alpha/rank` times a product, or `strength`
    times a difference.

    Args:
        layer: our name of a layer, or of a modulation.
        tensors: by role.
        strength: of the LoRA.
        default_scale: in the place of alpha/rank where there is no alpha among the tensors.
    """
    if layer.endswith(MODULATION):
        difference = tensors.get(MODULATION_DIFF, tensors.get(DIFF))
        tensors = {} if difference is None else {DIFF: difference}
    weight = layer if layer.endswith(MODULATION) else f"{layer}.weight"
    for update in _updates(tensors, strength, default_scale):
        yield weight, update
    if BIAS_DIFF in tensors:
        yield f"{layer}.bias", Full({DIFF: tensors[BIAS_DIFF]}, strength)


def rank_of(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The rank of a layer's tensors; None for whole matrices and differences."""
    return next((shapes[role][0] for role in RANK_ROLES if shapes.get(role)), None)


def _updates(tensors: Tensors, strength: float, default_scale: float) -> list[Update]:
    updates: list[Update] = []
    if DIFF in tensors:
        updates.append(Full({DIFF: tensors[DIFF]}, strength))
    for kind, start in ((LowRank, (DOWN, UP)), (Hadamard, ("hada_",)), (Kronecker, ("lokr_",))):
        parts = {role: _matrix(tensor) for role, tensor in tensors.items() if role.startswith(start)}
        if parts:
            rank = rank_of({role: tuple(part.shape) for role, part in parts.items()})
            updates.append(kind(parts, strength * _scale(tensors, rank, default_scale)))
    return updates


def _scale(tensors: Tensors, rank: int | None, default: float) -> float:
    if rank is None:
        return 1.0
    return tensors[ALPHA].item() / rank if ALPHA in tensors else default


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.flatten(1) if tensor.ndim > 2 else tensor  # some write linear layers as 1x1 convolutions
