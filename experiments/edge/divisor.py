"""An ordinary, normalised network whose loss is divided, as accumulation and means do."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscale.recipes import find
from task import Task, Training


def begin(octaves: float, seed: int) -> Training:
    """`octaves`: the loss is divided by 2 to it."""
    recipe = find("digits")
    train, test = recipe.load()
    model = recipe.model()
    # Adam's steps do not depend on the unit of the loss, if eps lies below its gradients.
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, eps=1e-8 * 2.0**-octaves)

    def loss(step: int) -> Tensor:
        return recipe.loss(model, recipe.batch(train, seed, step, 64)) * 2.0**-octaves

    def score() -> Tensor:
        model.eval()
        return recipe.metric(model, test)

    return Training(model, optimizer, loss, score)


TASK = Task(
    name="divisor",
    about="residual network with batch norm on digits, Adam",
    knob="octaves by which the loss is divided",
    values=(0, 8, 16, 24, 32),
    fast=(0, 16, 32),
    steps=120,
    score="accuracy",
    chance=0.1,
    begin=begin,
)
