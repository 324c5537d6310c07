"""Losses whose producers receive expanded gradients, and a module that sums what it receives."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Gain(nn.Module):
    """One parameter, whose gradient is the sum of all elements of another."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.7]))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


EXPANDING: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda y: y.sum() * 0.3,
    "expanded rows": lambda y: y.sum(0).sin().sum(),
    "expanded channels": lambda y: y.sum(1, keepdim=True).sin().sum(),
    "behind a view": lambda y: y.flatten(1).t().sum() / 3,
}
