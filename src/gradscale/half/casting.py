"""Hooks that cast what modules read and return, so that a plain forward pass fits together.

Every module with half-precision parameters reads half precision; a module kept in float32 reads
float32 and returns half precision; the model itself returns float32. The hooks hold a dtype and
nothing else: they are copied and pickled with their module.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import fields, is_dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import PackedSequence

from gradscale.half.rounding import floating

_WIDE = "_gradscale_float32"


class ReadsIn:
    """A forward pre-hook: floating-point inputs are cast to a dtype.

    Args:
        dtype: of what the module reads.
        without_ddp: refuse to run inside DistributedDataParallel.
    """

    def __init__(self, dtype: torch.dtype, *, without_ddp: bool = False) -> None:
        self.dtype = dtype
        self.without_ddp = without_ddp

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inputs, cast."""
        del module
        if self.without_ddp and DistributedDataParallel._active_ddp_module is not None:
            raise RuntimeError(
                "`half_precision(gradients=torch.float32)` under DistributedDataParallel: DDP "
                "reduces gradients in the dtype of their parameters. Leave `gradients` out, and "
                "sum micro-batches in float32 with `scaler.accumulate_(optimizer)`."
            )
        return (
            tuple([cast_to(argument, self.dtype) for argument in args]),
            {name: cast_to(argument, self.dtype) for name, argument in kwargs.items()},
        )


class Returns:
    """A forward hook: floating-point outputs are cast to a dtype.

    Args:
        dtype: of what is returned.
        keep_wide: leave the float32 output within reach, in case the model returns it.
    """

    def __init__(self, dtype: torch.dtype, *, keep_wide: bool = False) -> None:
        self.dtype = dtype
        self.keep_wide = keep_wide

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The outputs, cast."""
        del module, args
        result = cast_to(output, self.dtype)
        if self.keep_wide and isinstance(output, Tensor) and result is not output:
            setattr(result, _WIDE, (output, _version(result)))
        return result


class ReturnsFloat32:
    """A forward hook of the whole model: outputs in float32, for the loss.

    What a module kept in float32 returned last comes as it was, without the way through half
    precision, unless it was changed in place since.
    """

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The outputs, cast."""
        del module, args
        kept = getattr(output, _WIDE, None) if isinstance(output, Tensor) else None
        if kept is None:
            return cast_to(output, torch.float32)
        wide, version = cast("tuple[Tensor, int | None]", kept)
        now = _version(output)
        if version is None or now is None:
            # Nobody counts its changes. Where it was not changed, it is the rounding of this.
            return torch.where(wide.to(output.dtype) == output, wide, output.to(torch.float32))
        return wide if now == version else output.to(torch.float32)


def _version(tensor: Tensor) -> int | None:
    """How often a tensor was changed in place; None of inference tensors, and for a compiler."""
    if torch.compiler.is_compiling() or tensor.is_inference():
        return None
    return tensor._version


def cast_to(value: Any, dtype: torch.dtype) -> Any:
    """A nesting of tensors in which every floating-point tensor has `dtype`.

    Example:
        >>> cast_to({"x": torch.ones(1), "n": torch.tensor(3)}, torch.float16)
        {'x': tensor([1.], dtype=torch.float16), 'n': tensor(3)}
    """
    if isinstance(value, Tensor):
        return value.to(dtype) if floating(value) and value.dtype != dtype else value
    if isinstance(value, PackedSequence):
        return value.to(dtype) if floating(value.data) else value
    if isinstance(value, Mapping):
        return _mapping(cast("Mapping[Any, Any]", value), dtype)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*[cast_to(item, dtype) for item in cast("tuple[Any, ...]", value)])
    if type(value) in (tuple, list):
        return type(value)([cast_to(item, dtype) for item in value])
    if is_dataclass(value) and not isinstance(value, type):
        return _dataclass(value, dtype)
    return value


def _dataclass(value: Any, dtype: torch.dtype) -> Any:
    """A copy with other tensors; `replace` would compute anew what the class computes itself."""
    changed: dict[str, Any] = {}
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


def _mapping(value: Mapping[Any, Any], dtype: torch.dtype) -> Any:
    """Of the same class where that can be filled (as Hugging Face's outputs can), else a dict."""
    if type(value) is dict:
        return {key: cast_to(item, dtype) for key, item in value.items()}
    changed = {key: cast_to(item, dtype) for key, item in value.items()}
    if all(changed[key] is item for key, item in value.items()):
        return value
    try:
        return cast(Any, type(value))(**changed)
    except TypeError:
        return changed
