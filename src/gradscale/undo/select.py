"""A step that the device takes or leaves by itself: computed always, kept only if it was good.

    copy parameters and state;  optimizer.step();  x = where(found_inf, copy, x)

Exact: after a step that is left, parameters, moments and step counters are the same bits as before.
It costs one more copy of parameters and state, and a pass to read and write each of them; fused
optimizers do it for nothing. What an optimizer keeps on the host cannot be taken back this way.
"""

from __future__ import annotations

import operator
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor

from gradscale.gradients.master_weights import masters_of
from gradscale.gradients.unscale import tensor_values
from gradscale.optimizer_parameters import parameters_of
from gradscale.torch_types import StateDict
from gradscale.undo.kept_state import copy_of_kept, inner_optimizers, kept_tensors, kept_values
from gradscale.undo.own_step import own_step

_TAKEN = "_gradscale_taken"

Saved = tuple[object, object]
"""What an optimizer keeps under one name, and a copy of it."""


@contextmanager
def selected(optimizer: torch.optim.Optimizer, found_inf: Tensor) -> Generator[None, None, None]:
    """For one step: what it changed is taken back on the device if `found_inf` is set.

    The first step, in which an optimizer makes its state, is the exception: what there was before
    is no tensor, so the host decides, with one read.

    Args:
        optimizer: whose `step` is called within.
        found_inf: float32 0-d; nothing of it is read on the host.

    Raises:
        ValueError: if the optimizer keeps a number on the host, or a tensor on another device.
    """
    masters = masters_of(optimizer)
    if masters is not None:
        masters.take_changes()  # or the weights that somebody wrote would be taken back, too
    before = _Before(optimizer, found_inf)
    # Ahead of the hooks that follow a step: none may copy or average what is to be taken back.
    with own_step(optimizer, before.restore_, before.note_numbers):
        yield
    before.restore_()


class _Before:
    """Parameters and state as they were, and what the host keeps beside them."""

    def __init__(self, optimizer: torch.optim.Optimizer, found_inf: Tensor) -> None:
        self._optimizer, self._found_inf = optimizer, found_inf
        self._numbers = _numbers(optimizer)
        self._entered = self._restored = False
        self._parameters = _stepped(optimizer)
        self._keys = _state_keys(optimizer, self._parameters)
        _refuse_inner(optimizer)
        _refuse_other_devices(optimizer, self._keys, found_inf)
        with torch.no_grad():
            self._values = [tensor_values(p.detach()).clone() for p in self._parameters]
            self._state = [_saved(optimizer, key) for key in self._keys]

    def note_numbers(self) -> None:
        """Once the pre-hooks have run: they may set a learning rate."""
        if not self._entered:
            self._entered, self._numbers = True, _numbers(self._optimizer)

    def restore_(self, done: bool = True) -> None:
        """Once the optimizer's own code is done: takes back what it changed, if it is skipped."""
        if self._restored or not done:
            return
        self._restored = True
        if _numbers(self._optimizer) != self._numbers:
            raise ValueError(
                f"`GradScaler(sync_free=True)`: {type(self._optimizer).__name__} counts on the "
                "host, where a step that the device skips cannot be taken back. Pass "
                "`sync_free=False`."
            )
        skipped = self._found_inf > 0
        with torch.no_grad():
            for parameter, old in zip(self._parameters, self._values, strict=True):
                new = tensor_values(parameter.detach())
                torch.where(_on(skipped, new), old, new, out=new)
            # New state has no earlier value to choose on the device: the host decides, by a read.
            made_keys = _state_keys(self._optimizer, self._parameters)[len(self._keys) :]
            if made_keys and skipped.item():
                for key in made_keys:
                    del self._optimizer.state[key]
            for key, saved in zip(self._keys, self._state, strict=True):
                state = self._optimizer.state.get(key, {})
                made = [name for name, value in state.items() if not _kept(saved, name, value)]
                if made and skipped.item():
                    self._optimizer.state[key] = {n: old for n, (_, old) in saved.items()}
                    continue
                for name in saved.keys() & state.keys() - set(made):
                    _take_back(state, name, saved[name], skipped)


def _state_keys(optimizer: torch.optim.Optimizer, stepped: Iterable[Tensor]) -> list[Tensor]:
    """What a step may change the state of: parameters, and whatever else has one, added last."""
    parameters = set(map(id, parameters_of(optimizer)))
    return [*stepped, *(key for key in optimizer.state if id(key) not in parameters)]


def _saved(optimizer: torch.optim.Optimizer, key: Tensor) -> dict[str, Saved]:
    """By name, what is kept for a parameter, and a copy of it."""
    try:
        return {
            n: (value, copy_of_kept(value)) for n, value in optimizer.state.get(key, {}).items()
        }
    except NotImplementedError as error:
        raise ValueError(
            f"`GradScaler(sync_free=True)`: the state of {type(optimizer).__name__} cannot be "
            f"copied ({error}), so a step cannot be taken back. Pass `sync_free=False`."
        ) from error


def _refuse_inner(optimizer: torch.optim.Optimizer) -> None:
    # One whose state the wrapper shows as its own is taken back with it.
    inner = [one for one in inner_optimizers(optimizer) if one.state is not optimizer.state]
    if inner:
        raise ValueError(
            f"`GradScaler(sync_free=True)`: {type(optimizer).__name__} steps another optimizer "
            f"({type(inner[0]).__name__}), whose state it does not show, so a step cannot be taken "
            "back. Pass `sync_free=False`."
        )


def _kept(saved: Mapping[str, Saved], name: str, new: object) -> bool:
    """Whether the device can choose between a number of the state and what there was before."""
    was, old = saved.get(name, (None, None))
    if isinstance(new, Tensor):
        return isinstance(old, Tensor) and (old.shape, old.dtype) == (new.shape, new.dtype)
    now, before = kept_tensors(new), kept_tensors(was)
    return len(now) == len(before) and all(map(operator.is_, now, before))


def _take_back(state: StateDict, name: str, saved: Saved, skipped: Tensor) -> None:
    (was, old), new = saved, state[name]
    if not isinstance(new, Tensor):  # a container, whose tensors are the same objects as before
        for value, before in zip(kept_tensors(new), kept_tensors(old), strict=True):
            torch.where(_on(skipped, value), before, value, out=value)
        return
    flag, before = _on(skipped, new), cast(Tensor, old)
    if new is was:
        values = tensor_values(new)
        torch.where(flag, tensor_values(before), values, out=values)
    else:  # put there by the step, which may share it with the gradient
        state[name] = torch.where(flag, before, new)


def _on(flag: Tensor, tensor: Tensor) -> Tensor:
    return flag.to(device=tensor.device, non_blocking=True)


def prepared(optimizer: torch.optim.Optimizer) -> bool:
    """Whether what a step will change is there already, so that the device can skip it.

    It is if every parameter with a gradient has its state, or took part in a step that `mark_taken`
    was told of: an optimizer that made no state then needs none.
    """
    taken: set[int] = optimizer.__dict__.get(_TAKEN, set())
    return all(
        id(parameter) in taken or _complete(optimizer.state.get(parameter))
        for parameter in _stepped(optimizer)
    )


def mark_taken(optimizer: torch.optim.Optimizer) -> None:
    """Notes that the parameters that have a gradient now have been stepped."""
    taken: set[int] = optimizer.__dict__.setdefault(_TAKEN, set())
    taken.update(map(id, _stepped(optimizer)))


def _complete(state: Mapping[str, object] | None) -> bool:
    return bool(state) and all(leaf is not None for leaf in kept_values(state))


def _stepped(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for p in parameters_of(optimizer) if p.grad is not None]


def _refuse_other_devices(
    optimizer: torch.optim.Optimizer, keys: Iterable[object], found_inf: Tensor
) -> None:
    if found_inf.device.type == "cpu":
        return
    for parameter in (key for key in keys if isinstance(key, Tensor)):
        for name, value in optimizer.state.get(parameter, {}).items():
            elsewhere = [it for it in kept_tensors(value) if it.device != parameter.device]
            if elsewhere:
                raise ValueError(
                    f"`GradScaler(sync_free=True)`: {type(optimizer).__name__} keeps `{name}` on "
                    f"{elsewhere[0].device}, which would have to wait for {parameter.device}. "
                    "Build it with `capturable=True` or `fused=True`."
                )


def _numbers(optimizer: torch.optim.Optimizer) -> list[int | float]:
    """What an optimizer keeps on the host: numbers in its state and in its groups."""
    kept: list[int | float] = [
        leaf
        for leaf in kept_values(list(optimizer.state.values()))
        if isinstance(leaf, int | float)
    ]
    for group in optimizer.param_groups:
        kept += [value for value in group.values() if isinstance(value, int | float)]
    return kept
