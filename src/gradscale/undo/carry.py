"""An optimizer that steps on gradients still multiplied by S: its numbers follow, exactly.

Between steps the state stays at the scale of the last one, which the parameter groups remember
under ``"state_scale"``. It is multiplied only when the scale changes, and brought back to 1 by
whoever looks: `optimizer.state_dict()` saves unscaled state that every program can load, and a
step that no scaler makes sees unscaled state.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from gradscale.torch_types import ParamGroup, StateDict
from gradscale.undo.degrees import Degrees, check_state, from_table
from gradscale.undo.own_step import own_step

STATE_SCALE = "state_scale"
# The normal numbers of float32, in which kernels compute with a setting.
SMALLEST, LARGEST = 2.0**-126, torch.finfo(torch.float32).max
_MARK = "_gradscale_carrier"


@contextmanager
def carried(
    optimizer: torch.optim.Optimizer, degrees: Degrees, scale: float
) -> Generator[None, None, None]:
    """For one step on gradients at `scale`: settings and state are at that scale too.

    Args:
        optimizer: whose `step` is called within.
        degrees: how its numbers follow the gradient.
        scale: of the gradients in `.grad`; 1 if they are divided.

    Raises:
        ValueError: if a setting leaves the range of float32 at this scale, or a name in `degrees`
            stands for nothing.
    """
    carrier = _carrier(optimizer, degrees)
    carrier.check_names()  # of a state that was loaded, before it is multiplied
    carrier.bring_to(scale)
    settings = _ScaledSettings(optimizer, degrees, scale)
    carrier.stepping = True
    try:
        settings.put_in()
        with own_step(optimizer, settings.take_out, settings.put_in, _before_step):
            yield
    finally:
        carrier.stepping = False
        settings.take_out()
    carrier.check_names()


class _ScaledSettings:
    """Settings at a scale, in the place of the user's own while the optimizer computes."""

    def __init__(self, optimizer: torch.optim.Optimizer, degrees: Degrees, scale: float) -> None:
        self._optimizer, self._degrees, self._scale = optimizer, degrees, scale
        self._own: list[tuple[ParamGroup, str, object]] = []

    def put_in(self) -> None:
        if self._scale == 1:
            return
        scaled = [
            (group, name, _setting(self._optimizer, name, group[name], degree, self._scale))
            for group in self._optimizer.param_groups
            for name, degree in self._degrees.settings_of(group).items()
        ]
        # All were computed before any is put in: one that does not fit leaves the groups alone.
        self._own = [(group, name, group[name]) for group, name, _ in scaled]
        for group, name, value in scaled:
            group[name] = value

    def take_out(self, _: bool = True) -> None:
        for group, name, value in self._own:
            group[name] = value
        self._own = []


def _setting(
    optimizer: torch.optim.Optimizer, name: str, value: Tensor | float, degree: int, scale: float
) -> Tensor | float:
    factor = scale**degree
    if isinstance(value, Tensor):
        return value * factor
    if value and not SMALLEST <= abs(value * factor) <= LARGEST:
        raise ValueError(
            f"`{type(optimizer).__name__}({name}={value})` becomes {value * factor:g} at a scale "
            f"of {scale:g}, which float32 does not hold. Lower the scale, or pass "
            "`GradScaler(undo='gradient')`."
        )
    return value * factor


class _Carrier:
    """Keeps one optimizer's state at a scale, and watches who else uses the optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer, degrees: Degrees) -> None:
        self.optimizer, self.degrees = optimizer, degrees
        self.stepping = self._named = False
        optimizer.register_step_pre_hook(_before_step)
        optimizer.register_state_dict_post_hook(_unscaled)
        # Of the instance, because copies and pickles lose hooks and attributes, this one included.
        optimizer.__dict__["__getstate__"] = self._unscaled_copy

    def _unscaled_copy(self) -> StateDict:
        """What a copy or a pickle of the optimizer takes along: unscaled, as a state dict is."""
        optimizer = self.optimizer
        taken = dict(type(optimizer).__getstate__(optimizer))
        states, groups = dict(taken["state"]), [dict(group) for group in taken["param_groups"]]
        for group in groups:
            scale = group.pop(STATE_SCALE, 1.0)
            for parameter in group["params"]:
                if parameter in states and scale != 1:
                    states[parameter] = _divided(states[parameter], self.degrees, scale)
        state = defaultdict(dict, states)
        return {**taken, "state": state, "param_groups": groups}

    def follow(self, degrees: Degrees) -> None:
        if degrees is not self.degrees:
            self.degrees, self._named = degrees, False

    def check_names(self) -> None:
        """Of degrees that a user wrote, as soon as there is state to compare them with."""
        if not self._named:
            self._named = from_table(self.degrees) or check_state(self.optimizer, self.degrees)

    def bring_to(self, scale: float) -> None:
        for group in self.optimizer.param_groups:
            now = group.get(STATE_SCALE, 1.0)
            if now != scale:
                for owner, name, degree in self._scaled_state(group):
                    multiply_(owner[name], scale / now, degree)
                group[STATE_SCALE] = scale

    def _scaled_state(self, group: ParamGroup) -> Iterator[tuple[StateDict, str, int]]:
        for parameter in group["params"]:
            state = self.optimizer.state.get(parameter, {})
            for name, degree in self.degrees.state.items():
                if degree and isinstance(state.get(name), Tensor):
                    yield state, name, degree


def multiply_(tensor: Tensor, ratio: float, degree: int) -> None:
    """Multiplies by `ratio**degree`; in several steps where that leaves float32."""
    # The kernel rounds the factor to float32, which holds 2^-126 to 2^127: 2^±120 keeps away from
    # both ends, whatever a ratio that is no power of two adds.
    if abs(degree * math.log2(ratio)) < 120:
        tensor.mul_(ratio**degree)
        return
    for _ in range(abs(degree)):
        left = ratio if degree > 0 else 1 / ratio
        while abs(math.log2(left)) > 120:
            part = 2.0 ** math.copysign(120, math.log2(left))
            tensor.mul_(part)
            left /= part
        tensor.mul_(left)


def _carrier(optimizer: torch.optim.Optimizer, degrees: Degrees) -> _Carrier:
    # An attribute, because a copied or pickled optimizer loses it together with its hooks.
    carrier: _Carrier | None = optimizer.__dict__.get(_MARK)
    if carrier is None:
        carrier = _Carrier(optimizer, degrees)
        optimizer.__dict__[_MARK] = carrier
    carrier.follow(degrees)
    return carrier


def _before_step(optimizer: torch.optim.Optimizer, *_: object) -> None:
    carrier: _Carrier = optimizer.__dict__[_MARK]
    if not carrier.stepping:
        carrier.bring_to(1.0)


def _unscaled(optimizer: torch.optim.Optimizer, state_dict: StateDict) -> StateDict | None:
    """The state dict with copies of the scaled tensors, divided."""
    degrees = optimizer.__dict__[_MARK].degrees
    states = dict(state_dict["state"])
    groups = [dict(group) for group in state_dict["param_groups"]]
    for group in groups:
        scale = group.pop(STATE_SCALE, 1.0)
        for index in group["params"]:
            if index in states and scale != 1:
                states[index] = _divided(states[index], degrees, scale)
    return {**state_dict, "state": states, "param_groups": groups}


def _divided(state: StateDict, degrees: Degrees, scale: float) -> StateDict:
    state = dict(state)
    for name, degree in degrees.state.items():
        if isinstance(state.get(name), Tensor):
            state[name] = state[name].clone()
            multiply_(state[name], 1 / scale, degree)
    return state
