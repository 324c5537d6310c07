"""What is put around an optimizer: its methods, the closure of its step, its copies and pickles.

A copy of an optimizer has its state and settings, and none of its hooks. So that it does not update
masters of which nothing ever reaches a model, it takes along which parameter each belongs to:
copied or pickled together, a model and its optimizer are a pair again. Copied by itself it has
parameters of its own, of no model, as any copied optimizer has.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradscale.torch_types import StateDict

_PAIRS = "_gradscale_pairs"

Args = tuple[object, ...]
Kwargs = dict[str, object]
"""What a step hook is given: the optimizer itself and what `step` was called with."""

P = ParamSpec("P")
R = TypeVar("R")


def closure_of(args: Args, kwargs: Kwargs) -> Callable[[], object] | None:
    """The closure that a step pre-hook is given, after the optimizer itself; None without."""
    given = kwargs.get("closure", args[1] if len(args) > 1 else None)
    return given if callable(given) else None


def with_closure(args: Args, kwargs: Kwargs, closure: Callable[[], object]) -> tuple[Args, Kwargs]:
    """The same arguments with another closure, as a step pre-hook returns them."""
    if "closure" in kwargs:
        return args, {**kwargs, "closure": closure}
    return (args[0], closure, *args[2:]), kwargs


def patch(optimizer: Optimizer, name: str, method: Callable[..., object]) -> Callable[[], None]:
    """Puts a method around an optimizer's own; returns what takes it off again.

    Torch has hooks for `step` and for states, and none for these. An optimizer's pickle holds its
    state and settings only, so this never travels.
    """
    original = getattr(optimizer, name)

    def around(*args: object, **kwargs: object) -> object:
        return method(original, *args, **kwargs)

    def restore() -> None:
        optimizer.__dict__.pop(name, None)

    setattr(optimizer, name, around)
    return restore


class Pairs(NamedTuple):
    """What a copy needs to know of its masters.

    Attributes:
        parameters: half precision; copied with the model, they are the copied model's.
        masters: float32; copied with the optimizer, they are those in its `param_groups`.
        gradients: the dtype in which backward passes accumulate.
        saturate: whether masters beyond the half-precision range are clamped to it.
    """

    parameters: list[Tensor]
    masters: list[Tensor]
    gradients: torch.dtype
    saturate: bool


def copied_as_pair(
    optimizer: Optimizer, pairs: Callable[[], Pairs], rebuild: Callable[[Optimizer, Pairs], None]
) -> Callable[[], None]:
    """Makes copies and pickles of an optimizer take its masters along; returns the way back.

    Args:
        optimizer: given an attribute; neither copies nor pickles have it, they are given their own.
        pairs: what they take along, once parameters and masters agree.
        rebuild: called with the copy and its own pairs; a function that can be pickled.
    """

    def reduce(protocol: object) -> tuple[object, ...]:
        del protocol
        state: StateDict = optimizer.__getstate__()  # the instance's own, where the scale is in it
        return _bare, (type(optimizer), rebuild), {**state, _PAIRS: pairs()}

    def restore() -> None:
        optimizer.__dict__.pop("__reduce_ex__", None)

    optimizer.__dict__["__reduce_ex__"] = reduce
    return restore


def _bare(kind: type[Optimizer], rebuild: Callable[[Optimizer, Pairs], None]) -> Optimizer:
    """A copy that has nothing yet, and knows what to do with its state."""
    optimizer = kind.__new__(kind)
    optimizer.__dict__["__setstate__"] = partial(_set_state, optimizer, rebuild)
    return optimizer


def _set_state(
    optimizer: Optimizer, rebuild: Callable[[Optimizer, Pairs], None], state: StateDict
) -> None:
    del optimizer.__dict__["__setstate__"]
    pairs: Pairs = state.pop(_PAIRS)
    optimizer.__setstate__(state)
    rebuild(optimizer, pairs)
