"""The dispatch mode that sees every product, forward and backward, below autograd."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode_stack,
)

from gradscale.emulation.attention import attention
from gradscale.emulation.convolutions import convolution_backward
from gradscale.emulation.direction_formats import DirectionFormats, takes_part
from gradscale.emulation.products import product_handlers
from gradscale.emulation.rounding import Rounding

if TYPE_CHECKING:
    from gradscale.emulation.operators import Handler, Operator

_sdpa: Operator = torch.ops.aten.scaled_dot_product_attention.default


class EmulationMode(TorchDispatchMode):
    """Replaces products by rounded ones; everything else runs as it is.

    It lives below autograd, so that it sees the products of composite operations and of the
    backward formulas, and above the kernels, so that autograd records what it always records.
    """

    def __init__(self, precision: DirectionFormats) -> None:
        super().__init__()
        self.rounding = Rounding(precision)

    def __torch_dispatch__(
        self,
        func: Operator,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if self.rounding.silent:
            return func(*args, **kwargs)
        handler = _HANDLERS.get(func)
        if handler is not None:
            result = handler(self.rounding, func, *args, **kwargs)
        elif _is_composite(func):
            # Composite operations arrive whole in inference mode: take them apart, and look again.
            with self:
                result = func.decompose(*args, **kwargs)
        else:
            result = func(*args, **kwargs)
        if self.rounding.precision.directions_differ:
            self.rounding.note_made(result, aliases=_aliases(func))
        return result


def current_mode() -> EmulationMode | None:
    """The innermost emulation of this thread, also in the threads of the autograd engine."""
    for mode in reversed(_get_current_dispatch_mode_stack()):
        if isinstance(mode, EmulationMode):
            return mode
    return None


def current_rounding() -> Rounding | None:
    """That of the innermost emulation."""
    mode = current_mode()
    return None if mode is None else mode.rounding


@cache
def _is_composite(func: Operator) -> bool:
    return func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)


def _attend(
    rounding: Rounding,
    func: Operator,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *args: Any,
    **kwargs: Any,
) -> object:
    """Attention arrives whole in inference mode."""
    if not takes_part(query, key, value) or rounding.keeps_float32(query, key, value):
        return func(query, key, value, *args, **kwargs)
    return attention(rounding, query, key, value, *args, **kwargs)


def _aliases(func: Operator) -> bool:
    # Its schema says of `_unsafe_view` that it makes a new tensor, which its kernel does not.
    return func.is_view or func._schema.is_mutable or func is torch.ops.aten._unsafe_view.default


_HANDLERS: dict[Operator, Handler] = {
    **product_handlers(),
    torch.ops.aten.convolution_backward.default: convolution_backward,
    _sdpa: _attend,
}
