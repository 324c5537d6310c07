"""The products that are emulated: their operands, and how one is run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradscale.emulation.direction_formats import as_operand, as_result, takes_part

if TYPE_CHECKING:
    from gradscale.emulation.mode import EmulationMode

aten = torch.ops.aten

Handler = Callable[["EmulationMode", Any, tuple[Any, ...], dict[str, Any]], Any]

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
    mode: EmulationMode, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """One product, functional, in place or with `out=`: round, multiply in float32, round."""
    packet = func.overloadpacket
    name: str = packet.__name__
    in_place = name.endswith("_") and name not in OPERANDS
    base = name.rstrip("_") if in_place else name
    first, second = OPERANDS[base]
    a, b = args[first], args[second]
    if not takes_part(*(argument for argument in args if isinstance(argument, Tensor))):
        return func(*args, **kwargs)
    formats = mode.formats(a, b)
    if formats is None:
        return func(*args, **kwargs)
    out = args[0] if in_place else kwargs.pop("out", None)
    dtype = formats.dtype_for(a)
    wide = [
        argument if position in (first, second) else _widened(argument, dtype)
        for position, argument in enumerate(args)
    ]
    wide[first] = as_operand(a, formats.first, dtype)
    wide[second] = as_operand(b, formats.second, dtype)
    product = getattr(aten, base).default(*wide, **kwargs)
    result = as_result(product, formats.result, a.dtype)
    return result if out is None else _write(out, result, in_place)


def multiply_outer(
    mode: EmulationMode, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """The gradients of `mv` and `dot` that autograd writes as `gradient * saved`."""
    if not _is_outer(args):
        return func(*args, **kwargs)
    grad, saved = args
    formats = mode.backward_formats(grad, saved)
    if formats is None:
        return func(*args, **kwargs)
    product = as_operand(grad, formats.first) * as_operand(saved, formats.second)
    return as_result(product, formats.result, grad.dtype)


def _is_outer(args: tuple[Any, ...]) -> bool:
    node: Any = torch._C._current_autograd_node()
    if node is None or node.name() not in _VECTOR_NODES:
        return False
    grad, saved = args
    if not (isinstance(saved, Tensor) and takes_part(grad, saved)):
        return False
    # A column times a vector, or a scalar times a vector; not what is left of `alpha`.
    return saved.dim() == 1 and (grad.dim() == 0 or grad.shape[-1] == 1)


_VECTOR_NODES = frozenset(("MvBackward0", "AddmvBackward0", "DotBackward0", "VdotBackward0"))


def _widened(argument: Any, dtype: torch.dtype) -> Any:
    return argument.to(dtype) if isinstance(argument, Tensor) else argument


def _write(out: Tensor, result: Tensor, in_place: bool) -> Tensor:
    if not in_place and out.shape != result.shape:
        out.resize_(result.shape)
    return out.copy_(result)


def product_handlers() -> dict[Any, Handler]:
    """Every overload of every product, functional, in place and with `out=`."""
    handlers: dict[Any, Handler] = {aten.mul.Tensor: multiply_outer}
    for base in OPERANDS:
        for name in (base, base + "_"):
            packet = getattr(aten, name, None)
            for overload in () if packet is None else packet.overloads():
                if overload in ("default", "out"):
                    handlers[getattr(packet, overload)] = multiply
    return handlers
