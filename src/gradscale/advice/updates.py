"""What an optimizer makes of a gradient: by how much each weight would move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from inspect import signature
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from gradscale.advice.model_step import MakeOptimizer
from gradscale.random_state import same_random_numbers
from gradscale.truth import Gradients

REPEATS = 8
"""Steps on the same gradient: rules that begin as plain descent, RAdam for five, have set in."""


class _Closing(Protocol):
    def step(self, closure: Callable[[], Tensor], /) -> object: ...


@dataclass(frozen=True)
class Updates:
    """The user's optimizer, asked what it would do.

    Attributes:
        model: float32, under training; left alone.
        make: of parameters, returns the optimizer.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> lost = Gradients(parameters={"weight": torch.tensor([[1e-6, 0.0]])})
        >>> def update(make):
        ...     return Updates(model, make).of(lost).parameters["weight"] < -0.05
        >>> update(lambda weights: torch.optim.SGD(weights, lr=0.01))
        tensor([[False, False]])
        >>> update(lambda weights: torch.optim.Adam(weights, lr=0.01))
        tensor([[ True, False]])
    """

    model: nn.Module
    make: MakeOptimizer

    def of(self, gradients: Gradients) -> Gradients:
        """By how much each parameter moves in `REPEATS` steps on this gradient, none before.

        An optimizer that evaluates its closure several times finds the same gradient each time.
        """
        named = {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}
        twins = {name: nn.Parameter(values.clone()) for name, values in named.items()}
        optimizer = self.make(list(twins.values()))

        def evaluate() -> Tensor:
            for name, twin in twins.items():
                held = gradients.parameters.get(name)
                twin.grad = None if held is None else held.to(twin.dtype) / gradients.scale
            return torch.tensor(gradients.loss)

        with same_random_numbers():
            for _ in range(REPEATS):
                evaluate()
                step_with(optimizer, evaluate)
        moved = {name: twin.detach() - named[name] for name, twin in twins.items()}
        return replace(gradients, parameters=moved, modules={}, scale=1.0)


def step_with(optimizer: torch.optim.Optimizer, closure: Callable[[], Tensor]) -> None:
    """Steps, with the closure if it takes one; what it needs of gradients is there already."""
    if "closure" in signature(optimizer.step).parameters:
        cast(_Closing, optimizer).step(closure)
    else:
        optimizer.step()
