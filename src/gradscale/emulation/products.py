"""The products that are emulated: their operands, and how one is run."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from gradscale.emulation.direction_formats import as_operand, as_result, takes_part

if TYPE_CHECKING:
    from torch._ops import OpOverload

    from gradscale.emulation.operators import Handler, Operator
    from gradscale.emulation.rounding import Rounding

aten = torch.ops.aten

OPERANDS: dict[str, tuple[int, int]] = {
    "mm": (0, 1),
    "bmm": (0, 1),
    "mv": (0, 1),
    "dot": (0, 1),
    "vdot": (0, 1),
    "addmm": (1, 2),
    "baddbmm": (1, 2),
    "addbmm": (1, 2),
    "addmv": (1, 2),
    "_addmm_activation": (1, 2),
    "convolution": (0, 1),
    "conv_tbc": (0, 1),
}
"""Positions of the two operands; every other tensor argument is an addend."""


def multiply(
    rounding: Rounding, func: OpOverload[..., Tensor], *args: object, **kwargs: object
) -> Tensor:
    """One product, functional, in place or with `out=`: round, multiply in float32, round."""
    name: str = func.overloadpacket.__name__
    in_place = name.endswith("_") and name not in OPERANDS
    base = name.rstrip("_") if in_place else name
    first, second = OPERANDS[base]
    a, b = cast("tuple[Tensor, Tensor]", (args[first], args[second]))
    if not takes_part(*(argument for argument in args if isinstance(argument, Tensor))):
        return func(*args, **kwargs)
    formats = rounding.formats(a, b)
    if formats is None:
        return func(*args, **kwargs)
    # In place it is the addend that is written to, which the product reads before.
    out = args[0] if in_place else kwargs.pop("out", None)
    dtype = formats.dtype_for(a)
    # Addends are not rounded: hardware adds them to the accumulator as they are.
    wide = [it.to(dtype) if isinstance(it, Tensor) else it for it in args]
    wide[first] = as_operand(a, formats.first, dtype)
    wide[second] = as_operand(b, formats.second, dtype)
    product = getattr(aten, base).default(*wide, **kwargs)
    result = as_result(product, formats.result, a.dtype)
    return _write(out, result, in_place) if isinstance(out, Tensor) else result


def multiply_outer(
    rounding: Rounding, func: OpOverload[..., Tensor], grad: Tensor, saved: object
) -> Tensor:
    """The gradients of `mv` and `dot` that autograd writes as `gradient * saved`."""
    if not isinstance(saved, Tensor) or not _is_outer(grad, saved):
        return func(grad, saved)
    formats = rounding.backward_formats(grad, saved)
    if formats is None:
        return func(grad, saved)
    product = as_operand(grad, formats.first) * as_operand(saved, formats.second)
    return as_result(product, formats.result, grad.dtype)


def _is_outer(grad: Tensor, saved: Tensor) -> bool:
    node = torch._C._current_autograd_node()
    # torch declares a node, but returns None outside backward passes.
    if not node or node.name() not in _VECTOR_NODES or not takes_part(grad, saved):
        return False
    # A column times a vector, or a scalar times a vector; not what is left of `alpha`.
    return saved.dim() == 1 and (grad.dim() == 0 or grad.shape[-1] == 1)


_VECTOR_NODES = frozenset(("MvBackward0", "AddmvBackward0", "DotBackward0", "VdotBackward0"))


def _write(out: Tensor, result: Tensor, in_place: bool) -> Tensor:
    if not in_place and out.shape != result.shape:
        out.resize_(result.shape)
    return out.copy_(result)


def product_handlers() -> dict[Operator, Handler]:
    """Every overload of every product, functional, in place and with `out=`."""
    handlers: dict[Operator, Handler] = {aten.mul.Tensor: multiply_outer}
    for base in OPERANDS:
        for name in (base, base + "_"):
            packet = getattr(aten, name, None)
            for overload in () if packet is None else packet.overloads():
                if overload in ("default", "out"):
                    handlers[getattr(packet, overload)] = multiply
    return handlers
