"""An optimizer's settings that are numbers on the host, and so frozen into a capture."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from gradscale.gradients.master_weights import trained_by


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
        self._parameters = trained_by(optimizer)
        self._learning = _learning(self._parameters)

    def check(self) -> None:
        """Compares; a few dictionary look-ups a parameter group, and one attribute a parameter.

        Raises:
            RuntimeError: if a setting has changed since, or a parameter was frozen or added.
        """
        count = sum(len(group["params"]) for group in self._optimizer.param_groups)
        if count != len(self._parameters):
            raise RuntimeError(
                f"`step(batch)`: the captured step has {len(self._parameters)} parameters, the "
                f"optimizer now has {count}. Call `recapture()` after `add_param_group`."
            )
        learns, now = _learning(self._parameters), _settings(self._optimizer)
        if learns != self._learning:
            changed = sum(a != b for a, b in zip(learns, self._learning, strict=True))
            raise RuntimeError(
                f"`step(batch)`: `requires_grad` of {changed} of the optimizer's parameters has "
                "changed since the step was captured. Which ones are trained is part of the "
                "capture: call `recapture()` after freezing or unfreezing."
            )
        if now != self._settings:
            raise RuntimeError(
                f"`step(batch)`: {self._difference(now)}. A number is frozen into the capture: "
                "make it a tensor (`lr=torch.tensor(1e-3)`), which schedulers change in place, or "
                "call `recapture()`."
            )

    def _difference(self, now: list[dict[str, object]]) -> str:
        for olds, new in zip(self._settings, now, strict=False):
            for name, old in olds.items():
                if new.get(name) != old:
                    return (
                        f"the captured step has {name}={old}, the optimizer now has "
                        f"{name}={new.get(name)}"
                    )
        return "the optimizer's parameter groups have changed"


def learning(optimizer: torch.optim.Optimizer) -> list[bool]:
    """Which of the optimizer's parameters, over all groups, want a gradient.

    Example:
        >>> weights = [torch.ones(1, requires_grad=True), torch.ones(1)]
        >>> learning(torch.optim.SGD(weights, lr=0.1))
        [True, False]
    """
    return _learning(trained_by(optimizer))


def _learning(parameters: Iterable[Tensor]) -> list[bool]:
    return [parameter.requires_grad for parameter in parameters]


def _settings(optimizer: torch.optim.Optimizer) -> list[dict[str, object]]:
    return [
        {
            name: len(value) if name == "params" else value
            for name, value in group.items()
            # Tensors are read at every replay; `initial_lr` is the scheduler's, and no step reads
            # it.
            if not _holds_tensors(value) and name != "initial_lr"
        }
        for group in optimizer.param_groups
    ]


def _holds_tensors(value: object) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, tuple) and any(isinstance(item, Tensor) for item in value)
    )
