"""Hooks that cast what modules read and return, so that a plain forward pass fits together.

Every layer with half-precision parameters reads half precision; a module kept in float32 reads
float32, and returns half precision unless it was named; the model itself returns float32. What the
model is given stays as it is until a layer or a product reads it: some of it only a loss reads. The
hooks hold a dtype and nothing else: they are copied and pickled with their module.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from gradscale.callers import level_of_caller
from gradscale.half.operations import Float32Where
from gradscale.half.rounding import HALVES, floating

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_running = threading.local()


class ReadsIn:
    """A forward pre-hook: floating-point inputs are cast to a dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(
        self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        """The inputs, cast."""
        del module
        return (
            tuple([cast_to(argument, self.dtype) for argument in args]),
            {name: cast_to(argument, self.dtype) for name, argument in kwargs.items()},
        )


class Begins:
    """A forward pre-hook of what computes by itself: from here on, some of it in float32.

    Beside the model those of its parts that are nobody's layers: a checkpoint runs them again when
    the model has long returned, and others call them by themselves.

    Args:
        format: the half-precision format.
        model: whether this is the whole model.
        without_ddp: refuse to run inside DistributedDataParallel.
    """

    def __init__(self, format: torch.dtype, *, model: bool, without_ddp: bool = False) -> None:
        self.mode = Float32Where(format)
        self.model = model
        self.without_ddp = without_ddp

    def __call__(self, module: nn.Module, args: object) -> None:
        """Enters the mode, unless it is at work."""
        if self.without_ddp and DistributedDataParallel._active_ddp_module is not None:
            raise RuntimeError(
                "`half_precision(gradients=torch.float32)` under DistributedDataParallel: DDP "
                "reduces gradients in the dtype of their parameters. Leave `gradients` out, and "
                "sum micro-batches in float32 with `scaler.accumulate_(optimizer)`."
            )
        if torch.compiler.is_compiling():  # which sees the whole model at once
            if self.model:
                self.mode.__enter__()
            return
        begun = _begun()
        at_work = bool(begun) and begun[-1][1].format == self.mode.format
        begun.append((id(module), self.mode, not at_work))
        if not at_work:
            self.mode.__enter__()


class Ends:
    """A forward hook, called after errors as well: takes back what `Begins` has entered."""

    def __init__(self, format: torch.dtype, *, model: bool) -> None:
        self.mode = Float32Where(format)
        self.model = model

    def __call__(self, module: nn.Module, args: object, output: object) -> None:
        """Leaves the mode, if it was entered for this module."""
        if torch.compiler.is_compiling():
            if self.model:
                self.mode.__exit__(None, None, None)
            return
        begun = _begun()
        if begun and begun[-1][0] == id(module):
            _, mode, entered = begun.pop()
            if entered:
                mode.__exit__(None, None, None)


def _begun() -> list[tuple[int, Float32Where, bool]]:
    """Of this thread: modules that are running, by id, and whether each has entered its mode."""
    if not hasattr(_running, "begun"):
        _running.begun = []
    return _running.begun


class Returns:
    """A forward hook: floating-point outputs are cast to a dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, module: nn.Module, args: object, output: object) -> object:
        """The outputs, cast."""
        del module, args
        return cast_to(output, self.dtype)


class ReturnsFloat32:
    """A forward hook of the whole model: outputs in float32, for the loss.

    Warns once of a loss that is half precision: float16 tells few of them apart, and its gradient
    begins there.
    """

    def __init__(self) -> None:
        self.warned = False

    def __call__(self, module: nn.Module, args: object, output: object) -> object:
        """The outputs, cast."""
        del args
        if not (self.warned or torch.compiler.is_compiling()):
            losses = [each for each in tree_leaves(output) if _half_loss(each)]
            self.warned = bool(losses)
            if losses:
                name = str(losses[0].dtype).removeprefix("torch.")
                warnings.warn(
                    f"{type(module).__name__} computed a loss in {name}, after `half_precision`: a "
                    "number of few digits that ends early. Compute it from `output.float()`, or "
                    "by one of torch's losses, which are computed in float32.",
                    stacklevel=level_of_caller(),
                )
        return cast_to(output, torch.float32)


def _half_loss(value: object) -> bool:
    if not isinstance(value, Tensor) or value.dim() or not value.requires_grad:
        return False
    return value.dtype in HALVES


def cast_to(value: object, dtype: torch.dtype) -> object:
    """A nesting of tensors in which every floating-point tensor has `dtype`.

    Example:
        >>> cast_to({"x": torch.ones(1), "n": torch.tensor(3)}, torch.float16)
        {'x': tensor([1.], dtype=torch.float16), 'n': tensor(3)}
    """
    if isinstance(value, Tensor):
        return value.to(dtype) if floating(value) and value.dtype != dtype else value
    # Much of what modules are given, and nothing to take apart.
    if value is None or isinstance(value, bool | int | float | str):
        return value
    leaves, structure = tree_flatten(value)
    return tree_unflatten([_leaf(leaf, dtype) for leaf in leaves], structure)


def _leaf(value: object, dtype: torch.dtype) -> object:
    """What torch knows no way into: a tensor, or a container that a library or a user wrote."""
    if isinstance(value, Tensor):
        return cast_to(value, dtype)
    if isinstance(value, PackedSequence):
        return value.to(dtype) if floating(value.data) else value
    if isinstance(value, Mapping):
        return _mapping(cast("Mapping[str, object]", value), dtype)
    if is_dataclass(value) and not isinstance(value, type):
        return _dataclass(value, dtype)
    return value


def _dataclass(value: DataclassInstance, dtype: torch.dtype) -> object:
    """A copy with other tensors; `replace` would compute anew what the class computes itself."""
    changed: dict[str, object] = {}
    for field in fields(value):
        item = getattr(value, field.name, None)
        new = cast_to(item, dtype)
        if new is not item:
            changed[field.name] = new
    if not changed:
        return value
    result = copy(value)
    for name, new in changed.items():
        object.__setattr__(result, name, new)
    return result


def _mapping(value: Mapping[str, object], dtype: torch.dtype) -> object:
    """Of the same class where that can be filled (as Hugging Face's outputs can), else a dict."""
    changed = {key: cast_to(item, dtype) for key, item in value.items()}
    if all(changed[key] is item for key, item in value.items()):
        return value
    try:
        return cast("Callable[..., object]", type(value))(**changed)
    except TypeError:
        return changed
