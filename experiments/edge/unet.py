"""A U-Net that finds the noise in photographs: a mean over all pixels, divided further."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from gradscale.recipes.denoise import NOISE, Denoise, UNet
from gradscale.recipes.recipe import Data
from task import Task, Training

BATCH = 4
RECIPE = Denoise()


@lru_cache(maxsize=1)
def patches() -> Data:
    """Cut once."""
    return RECIPE.load()


def begin(octaves: float, seed: int) -> Training:
    """`octaves`: the loss is divided by 2 to it."""
    train, test = patches()
    model = UNet(8)
    # Adam's steps do not depend on the unit of the loss, if eps lies below its gradients.
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, eps=1e-8 * 2.0**-octaves)

    def loss(step: int) -> Tensor:
        return RECIPE.loss(model, RECIPE.batch(train, seed, step, BATCH)) * 2.0**-octaves

    def score() -> Tensor:
        return RECIPE.metric(model, test)

    return Training(model, optimizer, loss, score)


TASK = Task(
    name="unet",
    about="U-Net of three levels, noise in photographs, Adam",
    knob="octaves by which the loss is divided",
    values=(0, 12, 24, 32),
    fast=(0, 32),
    steps=100,
    score="PSNR in dB",
    chance=-20 * math.log10(NOISE),
    begin=begin,
)
