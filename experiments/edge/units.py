"""Two losses in different units: the recipe `towers`, the pixel a different part of a metre."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import unit
from gradscale.recipes.towers import PIXEL, WIDTH, Towers, TwoTowers
from task import Task, Training

RECIPE = Towers()


def begin(network: Callable[[], nn.Module], octaves: float, seed: int) -> Training:
    """`octaves`: by how much a centre's unit is larger than a pixel.

    The network maps images to logits and places in metres, as `TwoTowers` does.
    """
    train, test = RECIPE.load()
    model = network()
    size = 2.0**-octaves / PIXEL

    def losses(batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        images, labels, centres = batch
        logits, places = model(images)
        return F.cross_entropy(logits, labels), F.mse_loss(size * places, size * centres)

    def loss(step: int) -> Tensor:
        name, centre = losses(RECIPE.batch(train, seed, step, RECIPE.defaults.batch_size))
        return name + centre

    def score() -> Tensor:
        return RECIPE.metric(model, test)

    # Below every gradient, or Adam itself would favour the larger unit.
    eps = 2.0 ** min(-50.0, -2 * octaves - 40)
    optimizer = torch.optim.Adam(model.parameters(), lr=RECIPE.defaults.lr, eps=eps)
    return Training(model, optimizer, loss, score)


class UnitTowers(nn.Module):
    """`TwoTowers` with unit scaling: it answers in pixels, numbers of size 1."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.centre = (unit.plain(64, WIDTH, 4, outputs) for outputs in (10, 2))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `(n, 1, 8, 8)` to logits `(n, 10)` and a place `(n, 2)` in metres, both float32."""
        return self.name(images).float(), PIXEL * self.centre(images).float()


def begin_unit(octaves: float, seed: int) -> Training:
    """Unit scaling knows no units: each loss is divided by its own size, whatever `octaves` is."""
    del octaves
    train, test = RECIPE.load()
    model = UnitTowers()

    def loss(step: int) -> Tensor:
        images, labels, centres = RECIPE.batch(train, seed, step, RECIPE.defaults.batch_size)
        centre = unit.mse_loss(model.centre(images).float(), centres / PIXEL)
        return unit.cross_entropy(model.name(images).float(), labels) + centre

    def score() -> Tensor:
        return RECIPE.metric(model, test)

    optimizer = torch.optim.Adam(unit.groups(model, 0.1), eps=1e-15)
    return Training(model, optimizer, loss, score)


TASK = Task(
    name="units",
    about="two perceptrons on digits, one names, one finds the centre, Adam with a small eps",
    knob="octaves between the units",
    values=(0, 4, 8, 12, 16, 20, 24),
    fast=(0, 12, 18),
    steps=200,
    score="R² of centres",
    chance=0.0,
    begin=partial(begin, TwoTowers),
    own={"unit": begin_unit},
)
