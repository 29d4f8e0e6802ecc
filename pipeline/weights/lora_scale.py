"""The scale alpha/rank of a LoRA whose tensors have no alpha: stated in its header, or in `adapter_config.json`.

kohya's `ss_network_alpha` is left alone: its trainers write a tensor for each layer, and where there is none the file
was merged or resized since.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from ..errors import WeightsError
from .checkpoint import folder_settings
from .headers import parse_object
from .source import Source

HEADER_PREFIXES = ("transformer.", "")  # diffusers' and others'
HEADER_OBJECT = "lora_adapter_metadata"  # under which diffusers writes its fields as JSON
ALPHA_FIELDS = ("lora_alpha", "alpha", "network_alpha")
RANK_FIELDS = ("r", "rank", "lora_rank", "network_dim")
CONFIG_FILE = "adapter_config.json"


@dataclass(frozen=True)
class AdapterConfig:
    """Alpha and rank as PEFT states them (arXiv:2106.09685; rank-stabilized: arXiv:2312.03732).

    Attributes:
        origin: where they are stated, for people.
        alpha: of all layers but those of `alphas`.
        rank: of all layers but those of `ranks`; None where it is not stated.
        is_rank_stabilized: alpha is divided by the root of the rank.
        alphas: by the trainer's name of a layer, or its end.
        ranks: the same.
    """

    origin: str
    alpha: float
    rank: float | None = None
    is_rank_stabilized: bool = False
    alphas: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[str, float] = field(default_factory=dict)

    def scale(self, path: str, rank: int | None) -> float:
        """alpha/rank of a layer; 1 for one without a rank."""
        if rank is None:
            return 1.0
        alpha = _value_of(path, self.alphas, self.alpha)
        return alpha / (math.sqrt(rank) if self.is_rank_stabilized else rank)

    def fits(self, ranks: Mapping[str, int]) -> bool:
        """True if the layers have the stated ranks, or a single one where none is stated: else it is out of date."""
        if self.rank is None:
            return len(set(ranks.values())) <= 1
        return all(_value_of(path, self.ranks, self.rank) == rank for path, rank in ranks.items())

    def __str__(self) -> str:
        return f"alpha {self.alpha:g} from its {self.origin}"


def adapter_config(source: Source) -> AdapterConfig | None:
    """The alpha that a LoRA's header or its folder states; None without one.

    Raises:
        WeightsError: it cannot be read.
    """
    return _config_in_header(source) or _config_in_folder(source)


def _config_in_header(source: Source) -> AdapterConfig | None:
    fields = dict(source.metadata)
    if HEADER_OBJECT in fields:
        try:
            fields |= parse_object(fields[HEADER_OBJECT])
        except ValueError as error:
            raise WeightsError(
                f"{source.name} has a {HEADER_OBJECT} that cannot be read; download it again."
            ) from error
    for prefix, alpha, rank in product(HEADER_PREFIXES, ALPHA_FIELDS, RANK_FIELDS):
        if f"{prefix}{alpha}" in fields and f"{prefix}{rank}" in fields:
            return _config(source, "header", fields, prefix, alpha, rank)
    return None


def _config_in_folder(source: Source) -> AdapterConfig | None:
    fields = folder_settings(source.path, CONFIG_FILE)
    return _config(source, CONFIG_FILE, fields, "", "lora_alpha", "r") if fields.get("lora_alpha") is not None else None


def _config(
    source: Source, origin: str, fields: Mapping[str, Any], prefix: str, alpha_field: str, rank_field: str
) -> AdapterConfig:
    def number(name: str, value: object) -> float:
        try:
            if math.isfinite(result := float(value)):  # type: ignore[arg-type]  # text in headers
                return result
        except (TypeError, ValueError, OverflowError):
            pass
        raise WeightsError(
            f"{source.name} has a {origin} with {name} {value!r}, which is no number; download it again."
        )

    def pattern(name: str) -> dict[str, float]:
        values = fields.get(f"{prefix}{name}") or {}
        if not isinstance(values, Mapping):
            raise WeightsError(
                f"{source.name} has a {origin} with {name} {values!r}, which is no list of numbers; download it again."
            )
        return {path: number(name, value) for path, value in values.items()}

    rank = fields.get(f"{prefix}{rank_field}")
    return AdapterConfig(
        origin,
        number(alpha_field, fields[f"{prefix}{alpha_field}"]),
        None if rank is None else number(rank_field, rank),
        str(fields.get(f"{prefix}use_rslora", False)).lower() == "true",
        pattern("alpha_pattern"),
        pattern("rank_pattern"),
    )


def _value_of(path: str, pattern: Mapping[str, float], default: float) -> float:
    return next((value for end, value in pattern.items() if path == end or path.endswith(f".{end}")), default)
