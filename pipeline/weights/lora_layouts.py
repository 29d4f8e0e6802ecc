"""The names that trainers give to a LoRA's tensors, and what the tensors add to a weight."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn

from ..errors import WeightsError
from .key_maps import native_transformer_key

PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "pipe.dit.", "unet.",
            "lora_unet__", "lora_unet_", "lora_transformer_", "lycoris_", "model.")  # fmt: skip
ENDING = re.compile(
    r"(?P<path>.*?)\.?(?P<role>lora_down|lora_A|lora\.down|lora_up|lora_B|lora\.up|alpha|diff_b|diff_m|diff"
    r"|hada_w[12]_[ab]|lokr_w[12](?:_[ab])?)(?:\.default)?(?:\.weight)?$"
)
DOWN, UP, ALPHA, DIFF, BIAS_DIFF, MODULATION_DIFF = "down", "up", "alpha", "diff", "diff_b", "diff_m"
SPELLINGS = {"lora_down": DOWN, "lora_A": DOWN, "lora.down": DOWN, "lora_up": UP, "lora_B": UP, "lora.up": UP}

Tensors = Mapping[str, Tensor]
"""A layer's tensors by role: `DOWN`, `UP`, ..., "hada_w1_a", "lokr_w1"."""


def split_key(key: str) -> tuple[str, str] | None:
    """The path of the layer, without the trainer's prefix, and the role of the tensor; None for other tensors."""
    match = ENDING.match(key)
    if match is None:
        return None
    path = match["path"]
    for prefix in PREFIXES:  # some trainers put two in front
        path = path.removeprefix(prefix)
    return path, SPELLINGS.get(match["role"], match["role"])


class Names:
    """Our name of a layer or parameter, from its native or diffusers one, written with dots or underscores."""

    def __init__(self, model: nn.Module):
        self._ours: dict[str, str] = {}
        for path, module in model.named_modules():
            for leaf, _ in module.named_parameters(recurse=False):
                self._learn(f"{path}.{leaf}".lstrip(".") if leaf == "scale_shift_table" else path)

    def find(self, path: str) -> str | None:
        """Our path, or None."""
        return self._ours.get(path.replace(".", "_"))

    def _learn(self, ours: str) -> None:
        native = native_transformer_key(ours)
        for spelling in (ours, native, native.removesuffix(".modulation")):  # diff_m names the block or the head alone
            self._ours.setdefault(spelling.replace(".", "_"), ours)


class Update(nn.Module):
    """What a LoRA adds to a weight: `factor` times what `parts` make, `rows columns` in float32 (or as the weight)."""

    def __init__(self, parts: Tensors, factor: float, owner: int):
        super().__init__()
        self.factor, self.owner = factor, owner
        self.parts = nn.ParameterDict({role: nn.Parameter(part, requires_grad=False) for role, part in parts.items()})

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight that this fits."""
        raise NotImplementedError

    def forward(self) -> Tensor:
        """The update, in float32."""
        raise NotImplementedError

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
    """Whether tensors without numbers can be multiplied as an update multiplies its own."""
    try:
        tensors = {role: torch.empty(shape, device="meta") for role, shape in shapes}
        if ALPHA in tensors:
            tensors[ALPHA] = torch.ones(()).expand(tensors[ALPHA].shape)
        return all(update.shape == tuple(update().shape) for update in make_updates(tensors, 1.0, None, owner=0))
    except (RuntimeError, LookupError, AttributeError, ValueError, ArithmeticError):
        return False  # a factor is missing, or misshapen, or of another rank


def make_updates(tensors: Tensors, strength: float, default_alpha: float | None, owner: int) -> list[Update]:
    """What a layer's tensors add to its weight: `strength alpha/rank` times a product, `strength` times a difference.

    Args:
        tensors: by role.
        strength: of the LoRA.
        default_alpha: where there is no alpha among the tensors; None takes alpha = rank.
        owner: tells whose update it is.
    """
    updates: list[Update] = []
    if DIFF in tensors:
        updates.append(Full({DIFF: tensors[DIFF]}, strength, owner))
    for kind, start, rank_role, rank_axis in (
        (LowRank, (DOWN, UP), DOWN, 0),
        (Hadamard, ("hada_",), "hada_w1_b", 0),
        (Kronecker, ("lokr_",), _lokr_rank_role(tensors), 0),
    ):
        parts = {role: _matrix(tensor) for role, tensor in tensors.items() if role.startswith(start)}
        if parts:
            rank = parts[rank_role].shape[rank_axis] if rank_role in parts else None
            updates.append(kind(parts, strength * _scale(tensors, rank, default_alpha), owner))
    return updates


def _lokr_rank_role(tensors: Iterable[str]) -> str:
    return next((role for role in ("lokr_w1_b", "lokr_w2_b") if role in tensors), "")


def _scale(tensors: Tensors, rank: int | None, default_alpha: float | None) -> float:
    alpha = tensors[ALPHA].item() if ALPHA in tensors else default_alpha
    return 1.0 if alpha is None or rank is None else alpha / rank


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.flatten(1) if tensor.ndim > 2 else tensor  # some write linear layers as 1x1 convolutions
