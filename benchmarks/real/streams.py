"""Made-up batches that can be learned: for time and memory only shapes count, for losses more."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NAMES = 10
"""So many classes occur, few enough that a network learns them in fifty steps."""
STEPS = (1, 2, 3, 5)
"""A symbol is followed by one of so many: the loss falls to the logarithm of their number."""
CELL = 32
"""Pixels of a patch that belongs together."""


def text(generator: torch.Generator, n: int, time: int, used: int) -> tuple[Tensor, ...]:
    """Symbols `(n, time + 1)` below `used`, each a few above the one before, in a circle."""
    choice = _below(generator, len(STEPS), (n, time + 1))
    steps = torch.tensor(STEPS, device=generator.device)[choice]
    steps[:, 0] = _below(generator, used, (n,))
    return (steps.cumsum(1) % used,)


def images(generator: torch.Generator, n: int, side: int) -> tuple[Tensor, ...]:
    """Images `(n, 3, side, side)`, blurred patterns under noise; which pattern it is, `(n,)`."""
    labels = _below(generator, NAMES, (n,))
    patterns = _constant(generator.device, (NAMES, 3, 8, 8))
    drawn = nn.functional.interpolate(patterns[labels], size=(side, side), mode="bilinear")
    return drawn + _normal(generator, drawn.shape), labels


def scenes(generator: torch.Generator, n: int, side: int) -> tuple[Tensor, ...]:
    """Images `(n, 3, side, side)` of coloured squares under noise; each pixel's class."""
    cells = _below(generator, NAMES, (n, -(-side // CELL), -(-side // CELL)))
    classes = cells.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)[:, :side, :side]
    colours = _constant(generator.device, (NAMES, 3))
    drawn = colours[classes].permute(0, 3, 1, 2)
    return drawn + 0.5 * _normal(generator, drawn.shape), classes.contiguous()


def _below(generator: torch.Generator, high: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randint(high, shape, generator=generator, device=generator.device)


def _normal(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def _constant(device: torch.device, shape: tuple[int, ...]) -> Tensor:
    """The same in every batch, on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
