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
        leave_untraced(code, with_what_it_calls=True)
    return function


def leave_untraced(code: CodeType, *, with_what_it_calls: bool) -> None:
    """Tells dynamo to run frames of `code` as they are."""
    torchs: Any = frames  # whose stubs know neither of these
    skip, default = torchs._FrameAction.SKIP, torchs._FrameAction.DEFAULT
    within = skip if with_what_it_calls else default
    torchs.set_code_exec_strategy(code, torchs._FrameExecStrategy(skip, within))
