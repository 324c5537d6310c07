"""The backward pass of convolutions, whose arguments name the gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradscale.emulation.direction_formats import as_operand, as_result, takes_part

if TYPE_CHECKING:
    from gradscale.emulation.mode import EmulationMode
    from gradscale.emulation.products import Handler


def convolution_backward(
    mode: EmulationMode, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor | None, ...]:
    """Gradients of input, weight and bias from the rounded gradient and saved operands.

    The gradient of the bias is a sum, not a product: it adds the gradient as it stands.
    """
    grad, saved_input, weight, bias_sizes, *geometry, wanted = args
    formats = mode.backward_formats(grad, saved_input, weight)
    if not takes_part(grad, saved_input, weight) or formats is None:
        return func(*args, **kwargs)
    dtype = formats.dtype_for(grad)
    operands = [as_operand(grad, formats.first, dtype)]
    operands += [as_operand(saved, formats.second, dtype) for saved in (saved_input, weight)]
    products = func(*operands, bias_sizes, *geometry, [wanted[0], wanted[1], False])
    bias = None
    if wanted[2]:
        bias = grad.to(torch.float32).sum([0, *range(2, grad.dim())])
    return tuple(
        None if part is None else as_result(part, formats.result, grad.dtype)
        for part in (products[0], products[1], bias)
    )


def convolution_handlers() -> dict[Any, Handler]:
    """The backward operation by overload."""
    return {torch.ops.aten.convolution_backward.default: convolution_backward}
