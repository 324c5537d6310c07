"""An optimizer re-pointed from parameters to their masters, in place, its state moved along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradscale.torch_types import StateDict


def repoint(optimizer: Optimizer, masters: Mapping[int, Tensor]) -> None:
    """Puts tensors in the place of others in `param_groups` and `state`.

    Args:
        optimizer: changed in place; its groups and lists stay the same objects, so that schedulers
            and optimizers that remember them notice nothing.
        masters: by the id of the parameter that each replaces.
    """
    for group in optimizer.param_groups:
        parameters: list[Tensor] = group["params"]
        for place, parameter in enumerate(parameters):
            master = masters.get(id(parameter))
            if master is None:
                continue
            parameters[place] = master
            if parameter in optimizer.state:
                optimizer.state[master] = _fitting(optimizer.state.pop(parameter), master)


def _fitting(state: object, master: Tensor) -> object:
    """State kept beside a half-precision parameter, in the master's dtype."""
    if not isinstance(state, dict):
        return state
    kept = cast(StateDict, state)
    for name, value in kept.items():
        half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
        if half and value.shape == master.shape:
            kept[name] = value.to(master.dtype)
    return kept


def move_state(optimizer: Optimizer, master: Tensor) -> None:
    """Moves a master's state to its device, by torch's own rule for states that are loaded."""
    state: StateDict = optimizer.state.get(master, {})
    for group in optimizer.param_groups:
        if not any(parameter is master for parameter in group["params"]):
            continue
        # Elsewhere torch keeps the count of steps on the host, where reading it waits for nobody.
        steps_along = group.get("capturable") or group.get("fused")
        for name, value in state.items():
            if isinstance(value, Tensor) and (name != "step" or steps_along):
                state[name] = value.to(master.device)
