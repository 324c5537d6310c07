"""An optimizer and its parameters as they were, to go back to: for steps that are abandoned."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from gradscale.optimizer_parameters import parameters_of
from gradscale.torch_types import StateDict
from gradscale.undo.kept_state import copy_of_kept


class Snapshot:
    """Copies of an optimizer's parameters, state and settings.

    Takes as much memory as they do, and one pass to make.

    Example:
        >>> parameter = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.Adam([parameter])
        >>> before = Snapshot(optimizer)
        >>> parameter.grad = torch.ones(1)
        >>> optimizer.step()
        >>> before.restore_()
        >>> parameter.item(), len(optimizer.state)
        (1.0, 0)
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        with torch.no_grad():
            self._parameters = [(p, p.detach().clone()) for p in parameters_of(optimizer)]
            self._state = [
                (key, state, copy_of_kept(state)) for key, state in optimizer.state.items()
            ]
        self._groups = [
            {name: copy_of_kept(value) for name, value in group.items() if name != "params"}
            for group in optimizer.param_groups
        ]

    def restore_(self) -> None:
        """Writes everything back; parameters and tensors of the state stay the same objects."""
        with torch.no_grad():
            for parameter, value in self._parameters:
                parameter.copy_(value)
            # State that the step has made goes; what was there before comes back below.
            self.optimizer.state.clear()
            for key, state, saved in self._state:
                # The same dictionary, because the optimizer may hold on to it.
                if isinstance(state, dict):
                    _refill_(cast(StateDict, state), cast(StateDict, saved))
                self.optimizer.state[key] = state
        for group, settings in zip(self.optimizer.param_groups, self._groups, strict=True):
            for name in group.keys() - settings.keys() - {"params"}:
                del group[name]
            group.update(settings)


def _refill_(known: StateDict, saved: StateDict) -> None:
    for name in known.keys() - saved.keys():
        del known[name]
    for name, value in saved.items():
        current = known.get(name)
        if isinstance(current, Tensor) and isinstance(value, Tensor):
            # In place where that can be: the optimizer's own code may hold the tensor.
            current.copy_(value) if current.shape == value.shape else known.update({name: value})
        else:
            known[name] = value
