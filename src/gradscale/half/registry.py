"""Which optimizers update masters, asked by everything that reads an optimizer's gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor
from torch.optim import Optimizer

if TYPE_CHECKING:
    from gradscale.half.masters import Masters

_MASTERS = "_gradscale_masters"
"""An attribute, and no dictionary of ours: masters hold their optimizer and would never leave it.

Copies and pickles of an optimizer leave it out, as they do hooks.
"""


def masters_of(optimizer: Optimizer) -> Masters | None:
    """The masters of an optimizer; None if it updates the model's own parameters.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 2)
        >>> print(masters_of(torch.optim.SGD(model.parameters(), lr=0.1)))
        None
    """
    return optimizer.__dict__.get(_MASTERS)


def register_masters(optimizer: Optimizer, masters: Masters | None) -> None:
    """Makes these the masters of an optimizer; None for none any more."""
    if masters is None:
        optimizer.__dict__.pop(_MASTERS, None)
    else:
        optimizer.__dict__[_MASTERS] = masters


def names_by(optimizer: Optimizer) -> dict[int, str]:
    """The names of a half-precision model's parameters, by id; nothing for any other optimizer."""
    masters = masters_of(optimizer)
    model = None if masters is None else masters.model
    return {} if model is None else {id(p): name for name, p in model.named_parameters()}


def trained_by(optimizer: Optimizer, parameters: Iterable[Tensor] | None = None) -> list[Tensor]:
    """The tensors to which backward passes give gradients: parameters in the place of masters.

    Args:
        optimizer: owns `parameters`.
        parameters: some of its own, in any order; None for all.
    """
    if parameters is None:
        parameters = (p for group in optimizer.param_groups for p in group["params"])
    masters = masters_of(optimizer)
    if masters is None:
        return list(parameters)
    own = {id(link.master): link.parameter for link in masters.links}
    return [own.get(id(parameter), parameter) for parameter in parameters]
