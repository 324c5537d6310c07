"""torch's operators, and what runs in their place: kernels by dispatch key, handlers in a mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch._ops import OpOverload

Operator: TypeAlias = "OpOverload[..., object]"
"""One overload of an operator, such as `torch.ops.aten.mm.default`."""

Handler = Callable[..., object]
"""`handler(rounding, operator, *args, **kwargs)`, in the place of `operator(*args, **kwargs)`."""

KernelFunction = Callable[..., object]
"""`function(keyset, *args, **kwargs)`."""


@dataclass(frozen=True)
class Kernel:
    """The function that replaces the operation `name` at the dispatch key `key`."""

    name: str
    key: str
    function: KernelFunction
