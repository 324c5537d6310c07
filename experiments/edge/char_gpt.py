"""A small GPT on the text of Python's standard library, whose loss is divided."""

from __future__ import annotations

import math
from functools import lru_cache, partial

import torch
from torch import Tensor

import unit
from gradscale.recipes.chars import CONTEXT, SYMBOLS, ByteGPT, Chars
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


def begin_unit(optimizer: str, octaves: float, seed: int) -> Training:
    """The same text with unit scaling, which divides the loss by its own size, whatever it is.

    Rates were chosen in float32.
    """
    del octaves
    train, test = text()
    model = unit.Decoder(SYMBOLS, CONTEXT, width=32, depth=3, heads=2)
    optimizers = {
        "adam": lambda: torch.optim.Adam(unit.groups(model, 0.3)),
        "lion": lambda: Lion(unit.groups(model, 0.1), lr=0.1),
    }

    def loss(step: int) -> Tensor:
        (rows,) = RECIPE.batch(train, seed, step, BATCH)
        logits = model(rows[:, :-1]).float()
        return unit.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

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
        own={"unit": partial(begin_unit, optimizer)},
    )
