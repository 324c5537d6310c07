"""Two heads on one trunk, an actor and a critic say, whose losses have different units."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradscale.recipes.towers import PIXEL, Towers
from task import Task, Training

WIDTH = 64
RECIPE = Towers()


class TwoHeads(nn.Module):
    """Three layers with GELU that both use, then three layers each."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), *_layers(64), *_layers(WIDTH))
        self.name = nn.Sequential(*_layers(WIDTH), *_layers(WIDTH), nn.Linear(WIDTH, 10))
        self.centre = nn.Sequential(*_layers(WIDTH), *_layers(WIDTH), nn.Linear(WIDTH, 2))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `(n, 1, 8, 8)` to logits `(n, 10)` and places `(n, 2)` in pixels."""
        seen = self.trunk(images)
        return self.name(seen).float(), self.centre(seen).float()


def _layers(inputs: int) -> tuple[nn.Module, nn.Module]:
    return nn.Linear(inputs, WIDTH), nn.GELU()


def begin(octaves: float, seed: int) -> Training:
    """`octaves`: by how much a centre's unit is larger than a pixel."""
    train, test = RECIPE.load()
    model = TwoHeads()
    unit = 2.0**-octaves

    def loss(step: int) -> Tensor:
        images, labels, centres = RECIPE.batch(train, seed, step, RECIPE.defaults.batch_size)
        logits, places = model(images)
        pixels = centres / PIXEL
        return F.cross_entropy(logits, labels) + F.mse_loss(unit * places, unit * pixels)

    def score() -> Tensor:
        images, _, centres = test
        pixels = centres / PIXEL
        unexplained = (model(images)[1] - pixels).square().sum()
        return 1 - unexplained / (pixels - pixels.mean(0)).square().sum()

    # Below every gradient, or Adam itself would favour the larger unit.
    eps = 2.0 ** min(-50.0, -2 * octaves - 40)
    return Training(model, torch.optim.Adam(model.parameters(), lr=2e-3, eps=eps), loss, score)


TASK = Task(
    name="trunk",
    about="two heads on one trunk, one names digits, one finds their centre, Adam with a small eps",
    knob="octaves between the units",
    values=(0, 8, 16, 20),
    fast=(0, 16),
    steps=200,
    score="R² of centres",
    chance=0.0,
    begin=begin,
)
