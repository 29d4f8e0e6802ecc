"""Stored results of the published program, from `MULTITALK_GOLDEN` or from tests/golden."""

import fnmatch
import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

FOLDER = Path(os.environ.get("MULTITALK_GOLDEN", Path(__file__).parents[1] / "golden"))


class Golden:
    """One golden file: its tensors by name, its configuration and cases, and its tolerances."""

    def __init__(self, name: str):
        with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
            self.metadata = file.metadata()
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        self.config = json.loads(self.metadata["config"])
        self.cases = json.loads(self.metadata["cases"])
        self.tolerance = json.loads(self.metadata["tolerance"])
        self.checks = json.loads(self.metadata.get("checks", "{}"))

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def state(self, prefix: str = "") -> dict[str, Tensor]:
        """The weights below `state.<prefix>`, by their native names."""
        start = f"state.{prefix}"
        return {key[len(start) :]: value for key, value in self.tensors.items() if key.startswith(start)}

    def assert_close(self, result: Tensor, name: str) -> None:
        """Compares with the stored tensor `name` within its tolerance: exact if none is stated, 1e-4 for `mid`."""
        reference = self.tensors[name]
        assert result.shape == reference.shape, (
            f"{name}: shape {tuple(result.shape)}, expected {tuple(reference.shape)}"
        )
        if not reference.is_floating_point():
            assert torch.equal(result.to(reference.dtype), reference), f"{name} differs"
            return
        atol, rtol = self._bounds(name)
        error = (result.double() - reference.double()).abs()
        bound = atol + rtol * reference.double().abs()
        worst = (error - bound).max().item()
        assert worst <= 0, f"{name}: error {error.max().item():.3g} exceeds atol {atol:.3g} + rtol {rtol:.3g}"

    def _bounds(self, name: str) -> tuple[float, float]:
        for pattern, bounds in self.tolerance.items():
            if pattern == name or fnmatch.fnmatchcase(name, pattern):
                return bounds["suggested_atol"], bounds.get("suggested_rtol", 0.0)
        return (1e-4, 0.0) if name.startswith("mid.") else (0.0, 0.0)
