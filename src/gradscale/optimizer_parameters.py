"""The parameters of optimizers, in the order of their groups."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer


def parameters_of(*optimizers: Optimizer) -> list[Tensor]:
    """All of them; one that several groups share as often as it stands there."""
    return [p for each in optimizers for group in each.param_groups for p in group["params"]]


def distinct_parameters(*optimizers: Optimizer) -> list[Tensor]:
    """Each of them once, as `state_dict` numbers those of one optimizer."""
    return list({id(p): p for p in parameters_of(*optimizers)}.values())
