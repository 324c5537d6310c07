"""A network whose gradients fade from layer to layer: under one scale float16 loses some whole."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Fading(nn.Module):
    """Twelve layers and a head; each weight gradient is about a twelfth of the one above it."""

    def __init__(self, depth: int = 12, width: int = 16, std: float = 0.06) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=std * (2 / width) ** 0.5)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x)


def fading_batch(seed: int = 5, size: int = 8) -> tuple[Tensor, Tensor]:
    """Inputs and labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 16, generator=generator)
    return x, torch.randint(4, (size,), generator=generator)


def dead_weights(model: nn.Module) -> int:
    """How many weights have a gradient that is zero throughout."""
    return sum(
        p.grad is not None and not bool(p.grad.count_nonzero())
        for p in model.parameters()
        if p.ndim > 1
    )
