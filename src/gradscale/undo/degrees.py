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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Literal, cast

import torch
from torch import Tensor

from gradscale.optimizer_parameters import parameters_of
from gradscale.undo.kept_state import refuse_deeper

Way = Literal["gradient", "learning_rate", "moments", "optimizer"]
_KNOWN = "_gradscale_degrees"
WAYS: tuple[Way, ...] = ("gradient", "learning_rate", "moments", "optimizer")


_EXAMPLES = {"state": "{'momentum_buffer': 1}", "settings": "{'lr': -1}"}


def _check_degrees(kind: str, degrees: object) -> None:
    if not isinstance(degrees, Mapping):
        raise TypeError(
            f"`Degrees({kind}={degrees!r})` must be a dictionary from names to degrees, such as "
            f"`{kind}={_EXAMPLES[kind]}`."
        )
    for name, degree in cast("Mapping[object, object]", degrees).items():
        integer = isinstance(degree, Integral) and degree is not True and degree is not False
        if not (isinstance(name, str) and integer):
            raise TypeError(
                f"`Degrees({kind}={{{name!r}: {degree!r}}})`: a degree is an integer, the power of "
                "the gradient that the number of this name follows. Pass it as in "
                f"`{kind}={_EXAMPLES[kind]}`."
            )


@dataclass(frozen=True)
class Degrees:
    """Of which degree in the gradient an optimizer's state and settings are; the rest is 0.

    A wrong name would leave a number at the wrong scale, so names are checked. A setting that no
    parameter group has is refused before the step. A state that does not exist after a step is
    refused if another tensor there has no degree: one of the two is misnamed. (Give 0 to a tensor
    that does not follow the gradient.) If every tensor has its degree, nothing is wrong: optimizers
    make some state with some settings only, such as `momentum_buffer`.

    Attributes:
        state: by the key under which `optimizer.state[parameter]` holds it.
        settings: by the key under which a parameter group holds it. ``weight_decay`` is left alone
            in groups with ``decoupled_weight_decay``.

    Raises:
        TypeError: if a degree is no integer, or a key no string.

    Example:
        >>> Degrees(state={"momentum_buffer": 1}, settings={"lr": -1, "weight_decay": 1})
        Degrees(state={'momentum_buffer': 1}, settings={'lr': -1, 'weight_decay': 1})
    """

    state: Mapping[str, int] = field(default_factory=dict[str, int])
    settings: Mapping[str, int] = field(default_factory=dict[str, int])

    def __post_init__(self) -> None:
        _check_degrees("state", self.state)
        _check_degrees("settings", self.settings)

    @property
    def squares(self) -> bool:
        """Whether gradients are squared, so that they overflow from 2^64 on."""
        return max(self.state.values(), default=0) > 1

    def settings_of(self, group: Mapping[str, object]) -> dict[str, int]:
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
    # Its second moments are none: the update is orthogonalised, and forgets the gradient's size.
    torch.optim.Muon: Degrees(state={"momentum_buffer": 1}, settings={"eps": 1}),
}
"""Optimizers whose step does not depend on the gradient's scale, once eps and moments follow it."""


def check_way(way: object) -> None:
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
        ValueError: if the scale cannot be undone in this optimizer that way, or degrees are given
            for a setting that it does not have.
    """
    if isinstance(way, Degrees):
        _check_settings(optimizer, way)
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
    """`degrees_of`, looked up once for each optimizer.

    Raises:
        ValueError: as `degrees_of`, and if its state could not hold the scale.
    """
    known: tuple[Way | Degrees, Degrees] | None = optimizer.__dict__.get(_KNOWN)
    if known is None or known[0] is not way:
        degrees = degrees_of(optimizer, way)
        _refuse_float16_state(optimizer, way, degrees)
        known = optimizer.__dict__[_KNOWN] = (way, degrees)
    return known[1]


def _refuse_float16_state(
    optimizer: torch.optim.Optimizer, way: Way | Degrees, degrees: Degrees
) -> None:
    """Sums and squares of scaled gradients leave float16 long before the gradients do.

    Raises:
        ValueError: if the optimizer would keep its state in float16.
    """
    if degrees.state and any(p.dtype is torch.float16 for p in parameters_of(optimizer)):
        raise ValueError(
            f"`GradScaler(undo={way!r})` with {type(optimizer).__name__} on float16 parameters: "
            "its state would be float16, too, and overflow at the loss scale. Give them float32 "
            "masters, `gradscale.half_precision(model, optimizer)`, or pass `undo='gradient'`."
        )


def from_table(degrees: Degrees) -> bool:
    """Whether they are ours, of an optimizer of torch's, and not written by a user."""
    return any(degrees is own for table in (LINEAR, SCALE_FREE) for own in table.values())


def check_state(optimizer: torch.optim.Optimizer, degrees: Degrees) -> bool:
    """Compares the names that a user has written with the state that there is.

    Optimizers make some state with some settings only, so a name may be missing. What gives a wrong
    name away is the tensor that it should have named: one without a degree.

    Returns:
        Whether there is state to compare with.

    Raises:
        ValueError: if a name is missing while a tensor has none, or stands for no tensor.
    """
    states = [optimizer.state[p] for p in parameters_of(optimizer) if p in optimizer.state]
    made = {name: value for state in states for name, value in state.items() if value is not None}
    call = f"`Degrees(state=…)` with {type(optimizer).__name__}"
    for name in degrees.state:
        if name in made and not isinstance(made[name], Tensor):
            raise ValueError(
                f"{call}: `optimizer.state[parameter][{name!r}]` is {made[name]!r}, and only "
                "tensors can follow the scale. Pass `undo='gradient'`, which works with every "
                "optimizer."
            )
    missing = [name for name in degrees.state if name not in made]
    refuse_deeper(call, missing, made)
    without = [name for name in made if name not in degrees.state and _may_follow(name, made[name])]
    if missing and without:
        raise ValueError(
            f"{call}: no state has the key {missing[0]!r}, and {_listed(without)} "
            f"{'has' if len(without) == 1 else 'have'} no degree. Correct the name; a tensor that "
            f"does not follow the gradient gets 0: `state={{…, {without[0]!r}: 0}}`."
        )
    return bool(made)


def _may_follow(name: str, value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and name != "step"


def _check_settings(optimizer: torch.optim.Optimizer, degrees: Degrees) -> None:
    name = type(optimizer).__name__
    for setting in degrees.settings:
        values = [group[setting] for group in optimizer.param_groups if setting in group]
        if not values:
            numbers = [
                key
                for key, value in optimizer.param_groups[0].items()
                if _is_number(value) and key != "initial_lr"
            ]
            raise ValueError(
                f"`Degrees(settings={{{setting!r}: …}})`: no parameter group of {name} has a "
                f"setting of this name. Its numbers are {_listed(numbers)}."
            )
        for value in values:
            if not _is_number(value):
                raise ValueError(
                    f"`Degrees(settings={{{setting!r}: …}})`: with {name} it is {value!r}, and "
                    "only a number can follow the scale. Leave it out, or pass "
                    "`undo='gradient'`, which works with every optimizer."
                )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | Tensor) and not isinstance(value, bool)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _known(
    optimizer: torch.optim.Optimizer, table: Mapping[type[torch.optim.Optimizer], Degrees]
) -> Degrees | None:
    """The entry whose `step` this optimizer has: a subclass with its own behaves as it likes."""
    # Torch wraps the `step` of a class once, as the first of its optimizers is made.
    own = inspect.unwrap(type(optimizer).step)
    for kind, degrees in table.items():
        if isinstance(optimizer, kind) and inspect.unwrap(kind.step) is own:
            return degrees
    return None
