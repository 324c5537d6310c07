"""How each number of an optimizer follows its gradient: as which power of it.

An optimizer that is handed S times its gradient makes the same step if every number in it that is
proportional to the d-th power of the gradient is multiplied by S^d. That is the whole rule:

| number | degree |
|---|--:|
| momentum buffer, Adam's m, Adamax's u | 1 |
| Adam's v, Adagrad's sum, RMSprop's square average | 2 |
| learning rate of SGD, whose step is proportional to the gradient | -1 |
| coupled weight decay, added to the gradient | 1 |
| eps beside the root of v | 1 |
| learning rate of Adam, decoupled weight decay, trust ratios | 0 |
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

Way = Literal["gradient", "learning_rate", "moments", "optimizer"]
_KNOWN = "_gradscale_degrees"
WAYS: tuple[Way, ...] = ("gradient", "learning_rate", "moments", "optimizer")


@dataclass(frozen=True)
class Degrees:
    """Of which degree in the gradient an optimizer's state and settings are; the rest is 0.

    Attributes:
        state: by the key under which `optimizer.state[parameter]` holds it.
        settings: by the key under which a parameter group holds it. ``weight_decay`` is left alone
            in groups with ``decoupled_weight_decay``.

    Example:
        >>> Degrees(state={"momentum_buffer": 1}, settings={"lr": -1, "weight_decay": 1})
        Degrees(state={'momentum_buffer': 1}, settings={'lr': -1, 'weight_decay': 1})
    """

    state: Mapping[str, int] = field(default_factory=dict[str, int])
    settings: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def squares(self) -> bool:
        """Whether gradients are squared, so that they overflow from 2^64 on."""
        return max(self.state.values(), default=0) > 1

    def settings_of(self, group: Mapping[str, Any]) -> dict[str, int]:
        """The settings of one parameter group that follow the gradient."""
        return {
            name: degree
            for name, degree in self.settings.items()
            if name in group
            and not (name == "weight_decay" and group.get("decoupled_weight_decay"))
        }


LINEAR: dict[type[torch.optim.Optimizer], Degrees] = {
    torch.optim.SGD: Degrees(state={"momentum_buffer": 1}, settings={"lr": -1, "weight_decay": 1}),
}
"""Optimizers whose step is proportional to the gradient: the learning rate absorbs the scale."""

_ADAM = Degrees(
    state={"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2},
    settings={"eps": 1, "weight_decay": 1},
)
SCALE_FREE: dict[type[torch.optim.Optimizer], Degrees] = {
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
    torch.optim.NAdam: _ADAM,
    torch.optim.Adamax: Degrees(
        state={"exp_avg": 1, "exp_inf": 1}, settings={"eps": 1, "weight_decay": 1}
    ),
    torch.optim.Adagrad: Degrees(state={"sum": 2}, settings={"eps": 1, "weight_decay": 1}),
    torch.optim.RMSprop: Degrees(
        state={"square_avg": 2, "grad_avg": 1}, settings={"eps": 1, "weight_decay": 1}
    ),
    torch.optim.Muon: Degrees(state={"momentum_buffer": 1}, settings={"eps": 1}),
}
"""Optimizers whose step does not depend on the gradient's scale, once eps and moments follow it."""


def check_way(way: Any) -> None:
    """Refuses what is no way to undo the scale.

    Raises:
        ValueError: if it is a name that stands for nothing.
        TypeError: if it is neither a name nor `Degrees`.
    """
    names = ", ".join(repr(name) for name in WAYS)
    if isinstance(way, str) and way not in WAYS:
        raise ValueError(
            f"`GradScaler(undo={way!r})` must be one of {names}, or `gradscale.Degrees(…)` for an "
            "optimizer of your own."
        )
    if not isinstance(way, str | Degrees):
        raise TypeError(
            f"`GradScaler(undo={way!r})` must be a name ({names}) or `gradscale.Degrees(…)`."
        )


def degrees_of(optimizer: torch.optim.Optimizer, way: Way | Degrees) -> Degrees:
    """How this optimizer's numbers follow the gradient.

    Args:
        optimizer: one of torch's, or any if `way` says how it behaves.
        way: ``"learning_rate"``, ``"moments"``, ``"optimizer"`` (either), or the degrees.

    Raises:
        ValueError: if the scale cannot be undone in this optimizer that way.
    """
    if isinstance(way, Degrees):
        return way
    name = type(optimizer).__name__
    linear, scale_free = _known(optimizer, LINEAR), _known(optimizer, SCALE_FREE)
    allowed = {"learning_rate": linear, "moments": scale_free}.get(way, linear or scale_free)
    if allowed is not None:
        return allowed
    if linear is not None:
        hint = f"{name}'s step is proportional to the gradient: pass `undo='learning_rate'`"
    elif scale_free is not None:
        hint = f"no learning rate of {name} absorbs a scale, its moments do: pass `undo='moments'`"
    else:
        hint = (
            "nothing is known of how its numbers follow the gradient: pass "
            "`undo=gradscale.Degrees(…)`"
        )
    raise ValueError(
        f"`GradScaler(undo={way!r})` with {name}: {hint}, or `undo='gradient'`, which works with "
        "every optimizer."
    )


def degrees_once(optimizer: torch.optim.Optimizer, way: Way | Degrees) -> Degrees:
    """`degrees_of`, looked up once for each optimizer."""
    known: tuple[Way | Degrees, Degrees] | None = optimizer.__dict__.get(_KNOWN)
    if known is None or known[0] is not way:
        known = optimizer.__dict__[_KNOWN] = (way, degrees_of(optimizer, way))
    return known[1]


def _known(
    optimizer: torch.optim.Optimizer, table: Mapping[type[torch.optim.Optimizer], Degrees]
) -> Degrees | None:
    """The entry whose `step` this optimizer has: a subclass with its own behaves as it likes."""
    own = inspect.unwrap(type(optimizer).step)
    for kind, degrees in table.items():
        if isinstance(optimizer, kind) and inspect.unwrap(kind.step) is own:
            return degrees
    return None
