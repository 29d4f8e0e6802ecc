"""Training loop of a phase; its state is on disk, so that it can be stopped at any time and goes on later."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

RUN_FOLDER = Path(__file__).resolve().parents[2] / "training_runs" / "demo"
SAVE_EVERY_S = 90
LOG_EVERY_STEPS = 20
WARMUP_STEPS = 50
LAST_RATE = 0.05  # of the full learning rate
ADAM_RATE = 0.1  # of Muon's learning rate
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
MIN_MATRIX_SIDE = 8  # up to here a linear layer is a head of few outputs
AVERAGING = 0.98  # share that the averaged weights keep of themselves in a step, once there have been many

Model = TypeVar("Model", bound=nn.Module)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setup:
    """Settings that all phases share.

    Attributes:
        folder: of the states and clips on disk.
        seed: of everything random.
        device: where networks run.
        steps: of every phase, instead of its own number; the clips' phase takes it as the number of its shards.
    """

    folder: Path = RUN_FOLDER
    seed: int = 1
    device: torch.device = torch.device("cpu")
    steps: int | None = None


class Run(Generic[Model]):
    """Loop over the steps of one phase: learning rate, optimisers, averaged weights, log, state on disk.

    The matrices of layers learn by Muon (Jordan et al., 2024), everything else by AdamW at a tenth of the rate; a
    convolution's kernels count as rows of a matrix. The rate rises over the first steps and falls to a twentieth by a
    cosine. `average` is an exponential moving average of the weights; it is the phase's result.
    """

    def __init__(self, name: str, model: Model, num_steps: int, rate: float, setup: Setup) -> None:
        self.model = model.to(setup.device)
        self.rate, self.num_steps = rate, setup.steps or num_steps
        self.path = state_path(name, setup)
        weights, others = _split_weights(model)
        self._matrices = [(weight, nn.Parameter(weight.detach().flatten(1))) for weight in weights]  # in one memory
        self.optimizers: list[tuple[float, torch.optim.Optimizer]] = [
            (ADAM_RATE, torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0)),
            (1.0, torch.optim.Muon([matrix for _, matrix in self._matrices], momentum=0.9, weight_decay=0)),
        ]
        self.step = 0
        self.average = {key: value.detach().clone() for key, value in model.state_dict().items()}
        self._log_sums: dict[str, list[float]] = {}
        self._save_time = time.monotonic()
        if self.path.exists():
            self._load()

    def __iter__(self) -> Iterator[int]:
        """Numbers of the remaining steps; after the last one the state is on disk."""
        while not self.finished:
            yield self.step
            self.step += 1
            if self.finished or time.monotonic() - self._save_time > SAVE_EVERY_S:
                self.save()

    @property
    def finished(self) -> bool:
        """All steps are done."""
        return self.step >= self.num_steps

    @property
    def progress(self) -> float:
        """Share of the steps that are done, 0..1."""
        return self.step / self.num_steps

    def update(self, loss: Tensor, **figures: float) -> None:
        """Optimisers' step down a loss; `figures` are logged beside it."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for weight, matrix in self._matrices:
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        for share, optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = share * self._rate()
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        keep = min(AVERAGING, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for key, value in self.model.state_dict().items():
                if value.is_floating_point():
                    self.average[key].lerp_(value, 1 - keep)
        self._log(loss=loss.item(), **figures)

    def result(self) -> Model:
        """Model with its averaged weights."""
        self.model.load_state_dict(self.average)
        return self.model.eval()

    def save(self) -> None:
        """Writes the state; a half-written file never replaces a whole one."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for _, optimizer in self.optimizers],
            "average": self.average,
            "step": self.step,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.path)
        self._save_time = time.monotonic()

    def _load(self) -> None:
        state = torch.load(self.path, map_location=next(self.model.parameters()).device)
        self.model.load_state_dict(state["model"])
        for (_, optimizer), optimizer_state in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        self.average, self.step = state["average"], state["step"]
        logger.info("%s: goes on at step %d of %d", self.path.stem, self.step, self.num_steps)

    def _rate(self) -> float:
        if self.step < WARMUP_STEPS:
            return self.rate * (self.step + 1) / WARMUP_STEPS
        progress = (self.step - WARMUP_STEPS) / max(self.num_steps - WARMUP_STEPS, 1)
        return self.rate * (LAST_RATE + (1 - LAST_RATE) * (0.5 + 0.5 * math.cos(math.pi * progress)))

    def _log(self, **figures: float) -> None:
        for name, value in figures.items():
            self._log_sums.setdefault(name, []).append(value)
        if self.step % LOG_EVERY_STEPS == 0:
            text = "  ".join(f"{name} {sum(values) / len(values):.4f}" for name, values in self._log_sums.items())
            logger.info("%s  step %d/%d  %s", self.path.stem, self.step, self.num_steps, text)
            self._log_sums.clear()


def state_path(phase: str, setup: Setup) -> Path:
    """File of a phase's state."""
    return setup.folder / f"{phase}.pt"


def load_average(phase: str, setup: Setup) -> dict[str, Tensor]:
    """Averaged weights of a phase.

    Raises:
        FileNotFoundError: the phase was not run.
    """
    path = state_path(phase, setup)
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing. Run `python -m demo.training {phase}` first.")
    return torch.load(path, map_location="cpu")["average"]


def autocast(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 where that is fast: on a GPU and on a CPU with AVX-512."""
    fast = device.type != "cpu" or torch.backends.cpu.get_cpu_capability() == "AVX512"
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def _split_weights(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Weights of linear layers and convolutions, but for those of small heads; and all others."""
    matrices = [
        module.weight
        for module in model.modules()
        if isinstance(module, LAYERS) and isinstance(module.weight, nn.Parameter)  # not computed from others
        if min(module.weight.flatten(1).shape) > MIN_MATRIX_SIDE
    ]
    ids = {id(matrix) for matrix in matrices}
    return matrices, [weight for weight in model.parameters() if id(weight) not in ids]
