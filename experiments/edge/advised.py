"""A task of the edge as `advise` takes it: a model, batches, a loss of both, an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from task import Task, Training

ModelStep = tuple[
    nn.Module,
    Iterable[int],
    Callable[[nn.Module, int], Tensor],
    Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer],
]


def model_step(task: Task, value: float, seed: int) -> ModelStep:
    """The training that `training.train` would begin; a batch is the number of its step."""
    torch.manual_seed(seed)
    training = task.begin(value, seed)

    def loss(model: nn.Module, step: int) -> Tensor:
        with _standing_in(model, training.model):
            return training.loss(step)

    def optimizer(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        return _like(training, parameters)

    return training.model, range(task.steps), loss, optimizer


@contextmanager
def _standing_in(model: nn.Module, original: nn.Module) -> Generator[None]:
    """A task's loss knows its own model: meanwhile that has the parts of this one."""
    own = vars(original)
    object.__setattr__(original, "__dict__", vars(model))
    try:
        yield
    finally:
        object.__setattr__(original, "__dict__", own)


def _like(training: Training, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The task's optimizer with the same groups of other parameters."""
    trained = [p for p in training.model.parameters() if p.requires_grad]
    place = {id(own): other for own, other in zip(trained, parameters, strict=True)}
    groups = [
        {**group, "params": [place[id(parameter)] for parameter in group["params"]]}
        for group in training.optimizer.param_groups
    ]
    return type(training.optimizer)(groups, **training.optimizer.defaults)
