"""LoRAs: found in any trainer's naming, put on the transformer without touching its weights, and taken off again.

Matrices keep their numbers and get the LoRA at each use (`QuantizedLinear`), packed or not; the little rest (biases,
norms, modulation, the outermost layers) is changed in place, always from the untouched original.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from ..errors import WeightsError
from .catalog import open_as
from .checkpoint import settings_beside
from .lora_layouts import BIAS_DIFF, DIFF, DOWN, MODULATION_DIFF, Names, Update, check_whole, make_updates, split_key
from .quantization import QuantizedLinear
from .recognition import Component
from .source import Source

logger = logging.getLogger(__name__)

SPECIAL = {  # what a network of its own, or another rule, is needed for
    "dwpose_embedding": "a UniAnimate pose LoRA",
    ".q_loras.": "a Stand-In identity LoRA",
    "patch_embedding.lora_": "a control LoRA with more input channels",
    "dora_scale": "a DoRA",
    "lora_magnitude_vector": "a DoRA",
}
OTHER_MODELS = {
    "double_blocks": "HunyuanVideo or Flux",
    "single_blocks": "HunyuanVideo or Flux",
    "transformer_blocks": "LTX-Video, Flux or another diffusers model",
    "lora_te": "Stable Diffusion",
    "input_blocks": "Stable Diffusion",
}
KINDS = {"norm": "norms", "scale_shift_table": "modulations", ".bias": "biases"}


@dataclass
class LoraReport:
    """What became of a LoRA.

    Attributes:
        name: the file's.
        strength: how strongly it acts.
        applied: how many layers, biases, norms and modulations.
        skipped: why, by layer.
    """

    name: str
    strength: float
    applied: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        applied = ", ".join(f"{number} {kind}" for kind, number in self.applied.items()) + " applied"
        skipped = [f"{layer} skipped: {reason}" for layer, reason in list(self.skipped.items())[:3]]
        more = [f"{len(self.skipped) - 3} more skipped"] if len(self.skipped) > 3 else []
        return f"LoRA {self.name} at {self.strength:g}: " + "; ".join([applied, *skipped, *more, *self.notes])


class LoraStack:
    """The LoRAs on a transformer; any can be taken off, and without them the network is what it was, bit for bit."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.reports: list[LoraReport] = []
        self._names = Names(model)
        self._linears: dict[str, nn.Linear] = {}  # what stood where a quantised layer carries LoRAs now
        self._originals: dict[str, Tensor] = {}  # parameters that are changed in place
        self._changes: dict[str, list[Update]] = {}  # what is added to them

    def add(self, path: Path | str, strength: float = 1.0) -> LoraReport:
        """Puts a LoRA on and says what it did.

        Raises:
            WeightsError: nothing in it fits this model, or it needs a network of its own.
        """
        source, _ = open_as(path, Component.LORA)
        refuse_special(source)
        report = LoraReport(source.name, strength)
        alpha, is_rank_stabilized = _peft_scale(source)
        for target, tensors in self._layers(source, report).items():
            root = math.sqrt(tensors[DOWN].shape[0]) if is_rank_stabilized and DOWN in tensors else 1.0
            self._put_on(target, tensors, report, alpha and alpha * root)
        if not report.applied:
            raise WeightsError(_no_match(source, report))
        self.reports.append(report)
        self._note_image_branch(report)
        self._refresh()
        logger.info("%s.", report)
        return report

    def remove(self, report: LoraReport) -> None:
        """Takes off the LoRA that `add` gave `report` for."""
        self.reports.remove(report)
        for module in self.model.modules():
            if isinstance(module, QuantizedLinear):
                module.deltas = nn.ModuleList(delta for delta in module.deltas if delta.owner != id(report))
        for name, changes in self._changes.items():
            self._changes[name] = [change for change in changes if change.owner != id(report)]
        for path in list(self._linears):
            carrier = self.model.get_submodule(path)
            if not len(carrier.deltas):
                self.model.set_submodule(path, self._linears.pop(path).to(carrier.data.device))
        self._refresh()

    def _layers(self, source: Source, report: LoraReport) -> dict[str, dict[str, Tensor]]:
        layers: dict[str, dict[str, Tensor]] = {}
        for key in source.entries:
            parsed = split_key(key)
            target = parsed and self._names.find(parsed[0])
            if target is None:
                report.skipped[parsed[0] if parsed else key] = "this model has no such layer"
            else:
                layers.setdefault(target, {})[parsed[1]] = source.get(key)
        for target, tensors in layers.items():
            check_whole(source.name, target, {role: tuple(tensor.shape) for role, tensor in tensors.items()})
        return layers

    def _put_on(self, target: str, tensors: dict[str, Tensor], report: LoraReport, alpha: float | None) -> None:
        for name, update in self._updates(target, tensors, report, alpha):
            path, _, leaf = name.rpartition(".")
            module = self.model.get_submodule(path)
            wanted = tuple(getattr(module, leaf).shape) if getattr(module, leaf, None) is not None else None
            if update.shape != wanted:
                report.skipped[name] = f"shape {_by(update.shape)} instead of {_by(wanted or ())}"
            elif leaf == "weight" and type(module) in (nn.Linear, QuantizedLinear):
                self._quantized(path, module).deltas.append(update.to(next(module.parameters()).device))
                report.applied["layers"] += 1
            else:
                self._changes.setdefault(name, []).append(update)
                report.applied[next((kind for part, kind in KINDS.items() if part in name), "layers")] += 1

    def _updates(
        self, target: str, tensors: dict[str, Tensor], report: LoraReport, alpha: float | None
    ) -> Iterator[tuple[str, Update]]:
        """The updates of a layer, each with the parameter it is for."""
        owner, strength = id(report), report.strength
        if target.endswith("scale_shift_table"):
            change = tensors.get(MODULATION_DIFF, tensors.get(DIFF))
            tensors = {} if change is None else {DIFF: change}
        weight = target if target.endswith("scale_shift_table") else f"{target}.weight"
        for update in make_updates(tensors, strength, alpha, owner):
            yield weight, update
        if BIAS_DIFF in tensors:
            for update in make_updates({DIFF: tensors[BIAS_DIFF]}, strength, None, owner):
                yield f"{target}.bias", update

    def _quantized(self, path: str, module: nn.Module) -> QuantizedLinear:
        if isinstance(module, QuantizedLinear):
            return module
        self._linears[path] = module
        carrier = QuantizedLinear.of(module)
        self.model.set_submodule(path, carrier)
        return carrier

    def _refresh(self) -> None:
        """Every parameter that is changed in place becomes original + sum of changes, rounded once."""
        for name, changes in self._changes.items():
            path, _, leaf = name.rpartition(".")
            module = self.model.get_submodule(path)
            present = getattr(module, leaf).data
            original = self._originals.setdefault(name, present).to(present.device)
            total = original.float() + sum(change().to(present.device) for change in changes) if changes else original
            setattr(module, leaf, nn.Parameter(total.to(present.dtype), requires_grad=False))

    def _note_image_branch(self, report: LoraReport) -> None:
        """Says that a LoRA leaves the attention to the reference image alone, as one for text-to-video does."""
        carriers = [path for path, module in self.model.named_modules() if _carries(module, id(report))]
        if carriers and not any("add_k_proj" in path for path in carriers):
            report.notes.append("image-branch layers are not in it, which is normal for a text-to-video LoRA")


def _carries(module: nn.Module, owner: int) -> bool:
    return isinstance(module, QuantizedLinear) and any(delta.owner == owner for delta in module.deltas)


def refuse_special(source: Source) -> None:
    """Raises `WeightsError` for a LoRA that needs a network of its own."""
    for part, name in SPECIAL.items():
        if any(part in key for key in source.entries):
            raise WeightsError(f"{source.name} is {name}, which is not supported; use a plain LoRA for Wan2.1 14B.")


def _no_match(source: Source, report: LoraReport) -> str:
    first = ", ".join(list(source.entries)[:2])
    made_for = next((model for part, model in OTHER_MODELS.items() if any(part in key for key in source.entries)), "")
    reason = next(iter(report.skipped.values()), "") if not made_for else f"it was made for {made_for}"
    return f"LoRA {source.name} matches no layer of Wan2.1 14B (first names: {first}): {reason}."


def _peft_scale(source: Source) -> tuple[float | None, bool]:
    """Alpha for all layers, and whether it is per root of the rank, from `adapter_config.json` beside a PEFT file."""
    if not any(key.startswith("base_model.model.") for key in source.entries):
        return None, False
    config = settings_beside(source.path, "adapter_config.json")
    alpha = config.get("lora_alpha")
    if alpha is not None and not isinstance(alpha, int | float):
        raise WeightsError(f"{source.name} has an adapter_config.json with lora_alpha {alpha!r}; download it again.")
    return None if alpha is None else float(alpha), bool(config.get("use_rslora"))


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "none"
