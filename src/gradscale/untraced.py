"""Callbacks of a backward pass that `torch.compile` leaves alone, with all that they call."""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any, TypeVar, cast

from torch._C._dynamo import eval_frame as frames

Function = TypeVar("Function", bound=Callable[..., object])
_KNOWN: set[CodeType] = set()


def untraced(function: Function) -> Function:
    """The same function, whose frames dynamo does not trace.

    A compiled training step breaks its graph at `backward()`, which then runs with dynamo watching:
    it would trace every hook, and every function that a hook calls. Costs nothing when called.

    Example:
        >>> untraced(lambda gradient: gradient * 2)(3)
        6
    """
    code = cast(FunctionType, function).__code__
    if code not in _KNOWN:
        _KNOWN.add(code)
        torchs: Any = frames  # whose stubs know neither of these
        skip = torchs._FrameAction.SKIP
        torchs.set_code_exec_strategy(code, torchs._FrameExecStrategy(skip, skip))
    return function
