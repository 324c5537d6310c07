"""Methods that `torch.compile` leaves out of its graphs, as it leaves out torch's own scaler."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import ParamSpec, TypeVar, cast

import torch
from torch._C._dynamo.eval_frame import get_eval_frame_callback

from gradscale.untraced import leave_untraced

P = ParamSpec("P")
R = TypeVar("R")


def eager(method: Callable[P, R]) -> Callable[P, R]:
    """Keeps dynamo out of `method` and all that it calls.

    `torch.compiler.disable` does so too, but imports the compiler with the library, and costs
    every call more than a scaler's whole bookkeeping. Traced instead, the state of a step (ids,
    weak references, flags read by the host) would be frozen into the graph.
    """
    disabled: list[Callable[P, R]] = []

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if get_eval_frame_callback() is None:
            return method(*args, **kwargs)
        if not disabled:
            disabled.append(cast("Callable[P, R]", torch.compiler.disable(method)))
        return disabled[0](*args, **kwargs)

    call.__dict__["_torchdynamo_disable"] = True  # what `torch.compiler.disable` sets
    # Else, called between two graphs, `call` itself would be traced: in vain, and with a warning.
    leave_untraced(cast(FunctionType, call).__code__, with_what_it_calls=False)
    return call
