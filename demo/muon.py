"""Muon (Jordan et al., 2024): momentum made orthogonal; a few hundred steps do the work of thousands of AdamW."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .numbers import fast_dtype

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz iteration, as published
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """For weights of at least two axes; every axis after the first counts as one."""

    def __init__(self, weights: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.9) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """Moves every weight by an orthogonal matrix of size `lr`."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                average = state.setdefault("average", torch.zeros_like(weight))
                average.lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonal(weight.grad.lerp(average, group["momentum"]).flatten(1))
                size = max(1, update.shape[0] / update.shape[1]) ** 0.5
                weight.add_(update.view_as(weight).type_as(weight), alpha=-group["lr"] * size)


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix with the same singular vectors and singular values near 1; bfloat16 is enough for it."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(fast_dtype(matrix.device))
    x = x / (x.norm() + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x


def is_matrix(name: str, weight: Tensor) -> bool:
    """Whether Muon is for this weight: not for vectors, tables of embeddings and what they stand for."""
    return weight.ndim >= 2 and min(weight.shape[0], weight[0].numel()) > 8 and not name.endswith("scale_shift_table")
