"""Two heads on one trunk, an actor and a critic say, whose losses have different units."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

import units
from gradscale.recipes.towers import PIXEL
from task import Task

WIDTH = 64


class TwoHeads(nn.Module):
    """Three layers with GELU that both use, then three layers each."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), *_layers(64), *_layers(WIDTH))
        self.name = nn.Sequential(*_layers(WIDTH), *_layers(WIDTH), nn.Linear(WIDTH, 10))
        self.centre = nn.Sequential(*_layers(WIDTH), *_layers(WIDTH), nn.Linear(WIDTH, 2))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `(n, 1, 8, 8)` to logits `(n, 10)` and places `(n, 2)` in metres, both float32."""
        seen = self.trunk(images)
        return self.name(seen).float(), PIXEL * self.centre(seen).float()


def _layers(inputs: int) -> tuple[nn.Module, nn.Module]:
    return nn.Linear(inputs, WIDTH), nn.GELU()


TASK = Task(
    name="trunk",
    about="two heads on one trunk, one names digits, one finds their centre, Adam with a small eps",
    knob="octaves between the units",
    values=(0, 8, 16, 20),
    fast=(0, 16),
    steps=200,
    score="R² of centres",
    chance=0.0,
    begin=partial(units.begin, TwoHeads),
)
