"""An optimizer's settings that are numbers on the host, and so frozen into a capture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class FrozenSettings:
    """What the settings were when a step was captured.

    Example:
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        >>> frozen = FrozenSettings(optimizer)
        >>> optimizer.param_groups[0]["lr"] = 0.01
        >>> frozen.check()  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        RuntimeError: `step(batch)`: the captured step has lr=0.1, the optimizer now has ...
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._settings = _settings(optimizer)

    def check(self) -> None:
        """Compares; a few dictionary look-ups a parameter group.

        Raises:
            RuntimeError: if a setting has changed since.
        """
        now = _settings(self._optimizer)
        if now == self._settings:
            return
        differing = [
            f"the captured step has {name}={old}, the optimizer now has {name}={new.get(name)}"
            for olds, new in zip(self._settings, now, strict=False)
            for name, old in olds.items()
            if new.get(name) != old
        ]
        what = differing[0] if differing else "the optimizer's parameter groups have changed"
        raise RuntimeError(
            f"`step(batch)`: {what}. A number is frozen into the capture: make it a tensor "
            "(`lr=torch.tensor(1e-3)`), which schedulers change in place, or call `recapture()`."
        )


def _settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [
        {
            name: len(value) if name == "params" else value
            for name, value in group.items()
            if not _holds_tensors(value) and name != "initial_lr"
        }
        for group in optimizer.param_groups
    ]


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, tuple) and any(isinstance(item, Tensor) for item in value)
    )
