"""A training run on disk: its state is saved every minute, so that it can be stopped at any time and goes on later."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, TypeVar

import torch
from torch import nn

from .muon import Muon, is_matrix

RUN_FOLDER = Path(__file__).resolve().parents[1] / "training_runs" / "demo"
SAVE_EVERY_S = 90
LOG_EVERY_STEPS = 20

logger = logging.getLogger(__name__)


class Phase(Protocol):
    """A part of a stage."""

    @property
    def steps(self) -> int:
        """How many steps it takes."""


AnyPhase = TypeVar("AnyPhase", bound=Phase)


def phase_at(step: int, phases: Sequence[AnyPhase]) -> AnyPhase:
    """The phase that a step belongs to."""
    for phase in phases:
        if step < phase.steps:
            return phase
        step -= phase.steps
    return phases[-1]


def total_steps(phases: Sequence[Phase]) -> int:
    """Of all phases together."""
    return sum(phase.steps for phase in phases)


class Run:
    """Steps of one stage: learning rate, averaged weights, log, state on disk.

    Matrices learn by Muon, everything else by AdamW at a tenth of the rate. The rate rises over `warmup` steps and
    falls to a twentieth by a cosine; from each step of `restarts` it does so again (Loshchilov and Hutter, 2017), up to
    the share of it that is given there. `average` holds an exponential moving average of the weights, which is what is
    exported.
    """

    def __init__(
        self, name: str, model: nn.Module, steps: int, rate: float, warmup: int = 50, averaging: float = 0.99,
        restarts: Mapping[int, float] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self.model, self.steps, self.rate, self.warmup, self.averaging = model, steps, rate, warmup, averaging
        self.turns = {0: 1.0, **restarts}
        self.path = RUN_FOLDER / f"{name}.pt"
        named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
        matrices = [weight for name, weight in named if is_matrix(name, weight)]
        others = [weight for name, weight in named if not is_matrix(name, weight)]
        self.optimizers = {1.0: Muon(matrices), 0.1: torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0)}
        self.step = 0
        self.average = {key: value.detach().clone() for key, value in model.state_dict().items()}
        self.recent: dict[str, list[float]] = {}
        self.saved_at = time.monotonic()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._load()

    def __iter__(self) -> Iterator[int]:
        """The steps that are left; after the last one the state is on disk."""
        while self.step < self.steps:
            yield self.step
            self.step += 1
            if self.step == self.steps or time.monotonic() - self.saved_at > SAVE_EVERY_S:
                self.save()

    def update(self, loss: torch.Tensor, **figures: float) -> None:
        """One step of the optimiser; `figures` are logged beside the loss."""
        (loss).backward()
        self.apply(float(loss.detach()), **figures)

    def apply(self, loss: float, **figures: float) -> None:
        """The optimiser's step on gradients that are already there."""
        rate = self._rate_now()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for share, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = share * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        keep = min(self.averaging, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for key, value in self.model.state_dict().items():
                if value.is_floating_point():
                    self.average[key].lerp_(value, 1 - keep)
        self._log(loss=loss, **figures)

    def averaged(self) -> nn.Module:
        """The model with its averaged weights in place."""
        self.model.load_state_dict(self.average)
        return self.model.eval()

    def save(self) -> None:
        """Writes the state; a half-written file never replaces a whole one."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers.values()],
            "average": self.average,
            "step": self.step,
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.path)
        self.saved_at = time.monotonic()

    def _load(self) -> None:
        state = torch.load(self.path, map_location=next(self.model.parameters()).device)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers.values(), state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.average, self.step = state["average"], state["step"]
        logger.info("%s: goes on at step %d of %d", self.path.stem, self.step, self.steps)

    def _rate_now(self) -> float:
        start = max(start for start in self.turns if start <= self.step)
        end = min((later for later in self.turns if later > start), default=self.steps)
        rate, step = self.rate * self.turns[start], self.step - start
        if step < self.warmup:
            return rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(end - start - self.warmup, 1)
        return rate * (0.05 + 0.95 * (0.5 + 0.5 * torch.cos(torch.tensor(done * torch.pi)).item()))

    def _log(self, **figures: float) -> None:
        for name, value in figures.items():
            self.recent.setdefault(name, []).append(value)
        if self.step % LOG_EVERY_STEPS == 0:
            text = "  ".join(f"{name} {sum(values) / len(values):.4f}" for name, values in self.recent.items())
            logger.info("%s  step %d/%d  %s", self.path.stem, self.step, self.steps, text)
            self.recent.clear()
