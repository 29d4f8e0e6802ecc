"""LoRAs in any trainer's naming: a file's layers, and a transformer that takes several, without losing its weights.

Matrices keep their numbers and get the LoRA at each use (`QuantizedLinear`), packed or not; the little rest (biases,
norms, modulation, the outermost layers) is replaced, always from the untouched original.
"""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, reduce
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import WeightsError
from .catalog import Weights, open_as
from .lora_layouts import LayerNames, LoraKey, Update, check_whole, empty_part, layer_updates, rank_of, split_key
from .lora_scale import adapter_config
from .quantization import QuantizedLinear
from .recognition import Component
from .source import readable_shape

logger = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]
"""Of a network's weights, by our names."""
FileKey = tuple[Path, tuple[int, ...]]
"""A path, and the numbers that change when another file is written there."""

OTHER_MODELS = {
    "double_blocks": "HunyuanVideo or Flux",
    "single_blocks": "HunyuanVideo or Flux",
    "transformer_blocks": "LTX-Video, Flux or another diffusers model",
    "lora_te": "Stable Diffusion",
    "input_blocks": "Stable Diffusion",
}
KINDS = {"norm": "norms", "scale_shift_table": "modulations", ".bias": "biases"}
MAX_LISTED = 3  # layers that a report names
LEFT_OUT = " left out: its layers have other ranks"


@dataclass
class LoraReport:
    """The effect of a LoRA on a network.

    Attributes:
        name: the file's.
        strength: 1 is the trained one.
        applied: the number of layers, biases, norms and modulations.
        skipped: the reason, by layer.
        notes: whatever else is worth knowing.
    """

    name: str
    strength: float
    applied: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        applied = ", ".join(f"{number} {kind}" for kind, number in self.applied.items()) + " applied"
        skipped = [f"{layer} skipped: {reason}" for layer, reason in list(self.skipped.items())[:MAX_LISTED]]
        more = [f"{len(self.skipped) - MAX_LISTED} more skipped"] if len(self.skipped) > MAX_LISTED else []
        return f"LoRA {self.name} at {self.strength:g}: " + "; ".join([applied, *skipped, *more, *self.notes])


class LoraFile:
    """A LoRA's file: its tensors by layer and role. They are read once, however often they are put on a network.

    Raises:
        WeightsError: it is no plain LoRA, is damaged, or holds several adapters.
    """

    def __init__(self, path: Path | str):
        self.source, _ = open_as(path, Component.LORA)
        self._keys = {key: split_key(key) for key in self.source.entries}
        adapters = sorted({parts.adapter for parts in self._keys.values() if parts is not None})
        if len(adapters) > 1:
            names = ", ".join(name or "unnamed" for name in adapters)
            raise WeightsError(f"{self.name} holds {len(adapters)} LoRAs ({names}); choose a file of one.")
        config = adapter_config(self.source)
        is_current = config is not None and config.fits(self._ranks())
        self.config = config if is_current else None
        self.notes = [] if config is None else [f"{config}{'' if is_current else LEFT_OUT}"]

    @property
    def name(self) -> str:
        """The file's name, for people."""
        return self.source.name

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors by key, mapped.

        Raises:
            WeightsError: a number is NaN or infinite, which would spoil the whole video.
        """
        tensors = {key: self.source.get(key) for key, parts in self._keys.items() if parts is not None}
        for key, tensor in tensors.items():
            if not bool(torch.isfinite(tensor.float() if tensor.dtype.itemsize == 1 else tensor).all()):
                raise WeightsError(
                    f"LoRA {self.name} has numbers that are NaN or infinite ({key}); download it again or take another."
                )
        return tensors

    @property
    def empty_tensors(self) -> Mapping[str, Tensor]:
        """The same shapes without numbers."""
        parts = {key: parts.role for key, parts in self._keys.items() if parts is not None}
        return {key: empty_part(role, self.source.entries[key].shape) for key, role in parts.items()}

    def updates(
        self, tensors: Mapping[str, Tensor], shapes: Shapes, strength: float
    ) -> tuple[list[tuple[str, Update]], LoraReport]:
        """The updates of a network's weights, by their names, and a report of them.

        Args:
            tensors: of this file, by key.
            shapes: of all weights of the network.
            strength: 1 is the trained one.

        Raises:
            WeightsError: nothing in it fits, tensors are missing, or `strength` is no number.
        """
        if not math.isfinite(strength):
            raise WeightsError(f"The strength of {self.name} is {strength}; take a number, 1 is the trained one.")
        report = LoraReport(self.name, strength, notes=list(self.notes))
        updates = []
        for layer, keys in self._layers(LayerNames(shapes), report).items():
            own_shapes = {parts.role: self.source.entries[key].shape for key, parts in keys.items()}
            check_whole(self.name, layer, own_shapes)
            own_tensors = {parts.role: tensors[key] for key, parts in keys.items()}
            path = next(iter(keys.values())).path
            scale = 1.0 if self.config is None else self.config.scale(path, rank_of(own_shapes))
            for weight, update in layer_updates(layer, own_tensors, strength, scale):
                if update.shape != shapes.get(weight):
                    report.skipped[weight] = (
                        f"shape {readable_shape(update.shape)} instead of {readable_shape(shapes.get(weight, ()))}"
                    )
                else:
                    updates.append((weight, update))
                    report.applied[next((kind for part, kind in KINDS.items() if part in weight), "layers")] += 1
        if not updates:
            raise WeightsError(self._misfit(report))
        self._add_notes(report, updates)
        return updates, report

    def _layers(self, names: LayerNames, report: LoraReport) -> dict[str, dict[str, LoraKey]]:
        """The keys of each layer, by our name of it."""
        layers: dict[str, dict[str, LoraKey]] = {}
        for key, parts in self._keys.items():
            layer = None if parts is None else names.find(parts.path)
            if parts is None or layer is None:
                report.skipped[key if parts is None else parts.path] = "this model has no such layer"
            else:
                layers.setdefault(layer, {})[key] = parts
        return layers

    def _ranks(self) -> dict[str, int]:
        """The rank of each layer of low rank, by the trainer's name."""
        shapes: dict[str, dict[str, tuple[int, ...]]] = {}
        for key, parts in self._keys.items():
            if parts is not None:
                shapes.setdefault(parts.path, {})[parts.role] = self.source.entries[key].shape
        ranks = {path: rank_of(own_shapes) for path, own_shapes in shapes.items()}
        return {path: rank for path, rank in ranks.items() if rank}

    def _misfit(self, report: LoraReport) -> str:
        model = next((model for part, model in OTHER_MODELS.items() if any(part in key for key in self._keys)), "")
        layer, reason = next(iter(report.skipped.items()), ("", "it has no layers"))
        reason = f"it was made for {model}" if model else f"{layer} skipped: {reason}"
        return f"LoRA {self.name} fits no layer of this model ({reason}). Take a LoRA for Wan2.1 14B."

    def _add_notes(self, report: LoraReport, updates: list[tuple[str, Update]]) -> None:
        matrices = [weight for weight, update in updates if len(update.shape) == 2 and weight.endswith(".weight")]
        if matrices and not any("add_k_proj" in weight for weight in matrices):
            report.notes.append("image-branch layers are not in it, which is normal for a text-to-video LoRA")


def check_lora(path: Path, strength: float, weights: Weights | None) -> None:
    """Checks by its header that a LoRA fits the transformer with these weights; None checks only the file.

    Raises:
        WeightsError: it is no plain LoRA, is damaged, or fits no layer.
    """
    file = LoraFile(path)
    if weights is not None:
        file.updates(file.empty_tensors, {name: weight.shape for name, weight in weights.items()}, strength)


class LoraStack:
    """The LoRAs on a transformer, replaced all at once; without them the network is what it was, bit for bit.

    Attributes:
        reports: one for each LoRA, in order.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.reports: list[LoraReport] = []
        self._loras: list[tuple[FileKey, float]] = []
        self._files: dict[FileKey, LoraFile] = {}  # those of `_loras`
        self._shapes = _weight_shapes(model)
        self._linears: dict[str, nn.Linear] = {}  # layers that a quantised one stands in for
        self._originals: dict[str, Tensor] = {}  # parameters that are replaced by their sum with an update

    def replace(self, loras: Iterable[tuple[Path | str, float]]) -> None:
        """Puts these LoRAs on, files and strengths, and takes off all others. A file that stays is not read again.

        Raises:
            WeightsError: one fits nowhere, is damaged, or has numbers that are not finite; the network is as before.
        """
        keys = [(_file_key(Path(path).expanduser()), strength) for path, strength in loras]
        if keys == self._loras:
            return
        files = {key: self._files.get(key) or LoraFile(key[0]) for key, _ in keys}
        changes = [files[key].updates(files[key].tensors, self._shapes, strength) for key, strength in keys]
        self._take_off()
        sums: dict[str, list[Update]] = {}
        for updates, report in changes:
            for weight, update in updates:
                if not self._put_on(weight, update):
                    sums.setdefault(weight, []).append(update)
            logger.info("%s.", report)
        for weight, updates in sums.items():
            self._add_to(weight, updates)
        self._loras, self._files, self.reports = keys, files, [report for _, report in changes]

    def _put_on(self, weight: str, update: Update) -> bool:
        """Puts an update on a linear layer; False for any other parameter."""
        path, _, leaf = weight.rpartition(".")
        module = self.model.get_submodule(path)
        if leaf != "weight" or not isinstance(module, nn.Linear | QuantizedLinear):
            return False
        if isinstance(module, nn.Linear):
            self._linears[path] = module
            module = QuantizedLinear.of(module)
            self.model.set_submodule(path, module)
        module.deltas.append(update.to(module.data.device))
        return True

    def _add_to(self, weight: str, updates: list[Update]) -> None:
        """Replaces a parameter by original + sum of updates, rounded once."""
        original = self.model.get_parameter(weight).data
        self._originals[weight] = original
        total = original.float() + reduce(torch.add, (update().to(original.device) for update in updates))
        self._set_parameter(weight, total.to(original.dtype))

    def _take_off(self) -> None:
        for module in self.model.modules():
            if isinstance(module, QuantizedLinear):
                module.deltas = nn.ModuleList()
        for path, linear in self._linears.items():
            self.model.set_submodule(path, linear.to(next(self.model.get_submodule(path).parameters()).device))
        for weight, original in self._originals.items():
            self._set_parameter(weight, original.to(self.model.get_parameter(weight).device))
        self._linears, self._originals = {}, {}

    def _set_parameter(self, weight: str, tensor: Tensor) -> None:
        path, _, leaf = weight.rpartition(".")
        setattr(self.model.get_submodule(path), leaf, nn.Parameter(tensor, requires_grad=False))


def _file_key(path: Path) -> FileKey:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return path, ()  # `LoraFile` says why it cannot be opened
    return path, (status.st_mtime_ns, status.st_size, status.st_ino)


def _weight_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of all weights as the network uses them, packed or not."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for path, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            shapes[f"{path}.weight"] = tuple(module.weight.shape)
    return shapes
