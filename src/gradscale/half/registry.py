"""Which optimizers update masters, asked by everything that reads an optimizer's gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.optim import Optimizer

if TYPE_CHECKING:
    from gradscale.half.masters import Masters

MASTERS: WeakKeyDictionary[Optimizer, Masters] = WeakKeyDictionary()


def masters_of(optimizer: Optimizer) -> Masters | None:
    """The masters of an optimizer; None if it updates the model's own parameters.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 2)
        >>> print(masters_of(torch.optim.SGD(model.parameters(), lr=0.1)))
        None
    """
    # Asked several times a step; to look into a weak dictionary costs more than to see it empty.
    return MASTERS.get(optimizer) if MASTERS else None


def trained_by(optimizer: Optimizer, parameters: Iterable[Tensor] | None = None) -> list[Tensor]:
    """The tensors to which backward passes give gradients: parameters in the place of masters.

    Args:
        optimizer: owns `parameters`.
        parameters: some of its own, in any order; None for all.
    """
    if parameters is None:
        parameters = (p for group in optimizer.param_groups for p in group["params"])
    masters = MASTERS.get(optimizer)
    if masters is None:
        return list(parameters)
    own = {id(link.master): link.parameter for link in masters.links}
    return [own.get(id(parameter), parameter) for parameter in parameters]
