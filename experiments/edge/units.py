"""Two losses in different units: the recipe `towers`, the pixel a different part of a metre."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradscale.recipes.towers import PIXEL, Towers, TwoTowers
from task import Task, Training

RECIPE = Towers()


def begin(network: Callable[[], nn.Module], octaves: float, seed: int) -> Training:
    """`octaves`: by how much a centre's unit is larger than a pixel.

    The network maps images to logits and places in metres, as `TwoTowers` does.
    """
    train, test = RECIPE.load()
    model = network()
    unit = 2.0**-octaves / PIXEL

    def losses(batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        images, labels, centres = batch
        logits, places = model(images)
        return F.cross_entropy(logits, labels), F.mse_loss(unit * places, unit * centres)

    def loss(step: int) -> Tensor:
        name, centre = losses(RECIPE.batch(train, seed, step, RECIPE.defaults.batch_size))
        return name + centre

    def score() -> Tensor:
        return RECIPE.metric(model, test)

    # Below every gradient, or Adam itself would favour the larger unit.
    eps = 2.0 ** min(-50.0, -2 * octaves - 40)
    optimizer = torch.optim.Adam(model.parameters(), lr=RECIPE.defaults.lr, eps=eps)
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
)
