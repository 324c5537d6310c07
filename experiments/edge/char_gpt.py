"""A small GPT on the text of Python's standard library, whose loss is divided."""

from __future__ import annotations

import math
from functools import lru_cache, partial

import torch
from torch import Tensor

from gradscale.recipes.chars import SYMBOLS, ByteGPT, Chars
from gradscale.recipes.recipe import Data
from lion import Lion
from task import Task, Training

BATCH, TESTED = 8, 128
RECIPE = Chars()


@lru_cache(maxsize=1)
def text() -> Data:
    """Read once."""
    return RECIPE.load()


def begin(optimizer: str, octaves: float, seed: int) -> Training:
    """`octaves`: the loss is divided by 2 to it."""
    train, test = text()
    model = ByteGPT(width=32, depth=3, heads=2)
    optimizers = {
        # Adam's steps do not depend on the unit of the loss, if eps lies below its gradients.
        "adam": lambda: torch.optim.Adam(model.parameters(), lr=1e-2, eps=1e-8 * 2.0**-octaves),
        "lion": lambda: Lion(model.parameters(), lr=2e-3),
    }

    def loss(step: int) -> Tensor:
        return RECIPE.loss(model, RECIPE.batch(train, seed, step, BATCH)) * 2.0**-octaves

    def score() -> Tensor:
        return -RECIPE.metric(model, next(RECIPE.evaluation(test, TESTED)))

    return Training(model, optimizers[optimizer](), loss, score)


def task(optimizer: str) -> Task:
    """The task with that optimizer."""
    return Task(
        name=f"char-gpt-{optimizer}",
        about=f"GPT of three blocks on source text, {optimizer}",
        knob="octaves by which the loss is divided",
        values=(0, 12, 24, 32),
        fast=(0, 32),
        steps=200,
        score="minus bits per character",
        chance=-math.log2(SYMBOLS),
        begin=partial(begin, optimizer),
    )
