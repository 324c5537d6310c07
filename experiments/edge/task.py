"""The contract of a task with a knob: how far it can be turned is what `edge.py` finds out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from strategy import OWN, Strategy


@dataclass(frozen=True)
class Training:
    """One training at one setting of the knob.

    Attributes:
        model: initialized from torch's global generator, which the caller seeds.
        optimizer: of all its parameters.
        loss: of a step, a pure function of its number; computed under autocast, a float32 scalar.
        score: in float32, from the trained weights and held-out data.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[int], Tensor]
    score: Callable[[], Tensor]


@dataclass(frozen=True)
class Task:
    """A network that float32 trains, and a knob that makes its gradients harder to hold.

    Attributes:
        name: as typed, and as the results' file is called.
        about: network, data and optimizer in a line.
        knob: what is turned.
        values: where it is turned to.
        fast: the values tried under ``FAST=1``.
        steps: of one training.
        score: what `Training.score` measures; higher is better.
        chance: the score of a network that learned nothing.
        begin: a training at a value of the knob with a seed.
        own: the same by the name of a scaling, one of `strategy.OWN`, for which the network must
            be written anew, where that can be done. Under unit scaling it is another
            parametrization, with a rate of learning of its own.
        needs: a package that only the trainers' environment has, imported when a training begins.
    """

    name: str
    about: str
    knob: str
    values: tuple[float, ...]
    fast: tuple[float, ...]
    steps: int
    score: str
    chance: float
    begin: Callable[[float, int], Training]
    own: Mapping[str, Callable[[float, int], Training]] = field(default_factory=dict)
    needs: str | None = None

    @property
    def missing(self) -> str:
        """Why it cannot be trained here; empty if it can."""
        if self.needs is None or find_spec(self.needs) is not None:
            return ""
        return f"`{self.name}` needs the package `{self.needs}`: run `make experiments`"

    def offers(self, strategy: Strategy) -> bool:
        """Whether this task can be trained so."""
        return strategy.scaling not in OWN or strategy.scaling in self.own

    def training(self, strategy: Strategy, value: float, seed: int) -> Training:
        """A training at a value of the knob, of the network that the strategy asks for.

        Raises:
            ValueError: if the task does not offer it.
        """
        if not self.offers(strategy):
            raise ValueError(f"`{self.name}` is not written for the scaling `{strategy.scaling}`.")
        return self.own.get(strategy.scaling, self.begin)(value, seed)
