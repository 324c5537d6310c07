"""Plain layers as torch initialises them: each makes the gradient about four times smaller."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

import classify
import unit
from lamb import Lamb
from lion import Lion
from task import Task, Training

WIDTH = 64


def plain(depth: int) -> nn.Sequential:
    """`depth` linear layers with GELU between them, 64 pixels to 10 logits, torch's own weights."""
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(64, WIDTH), nn.GELU()]
    for _ in range(depth - 2):
        layers += [nn.Linear(WIDTH, WIDTH), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


def begin(optimizer: str, depth: float, seed: int) -> Training:
    """Digits, 128 an update."""
    model = plain(int(depth))
    optimizers = {
        "lion": lambda: Lion(model.parameters(), lr=3e-4),
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        "adam": lambda: torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-15),
        "adam-1e-8": lambda: torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-8),
        "lamb": lambda: Lamb(model.parameters(), lr=1e-2, eps=1e-15),
    }
    return classify.training(model, optimizers[optimizer](), 128, seed)


def begin_unit(optimizer: str, depth: float, seed: int) -> Training:
    """The same with unit scaling; rates were chosen in float32, at 20 layers."""
    model = unit.plain(64, WIDTH, int(depth), 10)
    optimizers = {
        "lion": lambda: Lion(unit.groups(model, 1e-2), lr=1e-2),
        "adam": lambda: torch.optim.Adam(unit.groups(model, 0.1), eps=1e-15),
        "adam-1e-8": lambda: torch.optim.Adam(unit.groups(model, 0.1), eps=1e-8),
    }
    criterion = unit.cross_entropy
    return classify.training(model, optimizers[optimizer](), 128, seed, criterion=criterion)


ABOUT = {
    "lion": "Lion",
    "sgd": "SGD with momentum",
    "adam": "Adam, eps 1e-15",
    "adam-1e-8": "Adam, eps 1e-8",
    "lamb": "LAMB, eps 1e-15",
}

# Where float32 itself trains: to 16 layers with the larger eps, to 6 with SGD (chance at 8).
DEPTHS = {"adam-1e-8": (8, 12, 16, 20), "sgd": (2, 3, 4, 5, 6)}
FAST = {"adam-1e-8": (12, 20), "sgd": (4, 6)}
UNIT = ("lion", "adam", "adam-1e-8")


def task(optimizer: str) -> Task:
    """The task with that optimizer."""
    return Task(
        name=f"depth-{optimizer}",
        about=f"plain layers with GELU, torch's initialisation, digits, {ABOUT[optimizer]}",
        knob="layers",
        values=DEPTHS.get(optimizer, (8, 12, 16, 20, 24, 28)),
        fast=FAST.get(optimizer, (12, 20, 28)),
        steps=400,
        score="accuracy",
        chance=0.1,
        begin=partial(begin, optimizer),
        own={"unit": partial(begin_unit, optimizer)} if optimizer in UNIT else {},
    )
