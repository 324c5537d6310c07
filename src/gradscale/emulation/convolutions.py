"""The backward pass of convolutions, whose arguments name the gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, cast

import torch
from torch import Tensor

from gradscale.emulation.direction_formats import as_operand, as_result, takes_part

if TYPE_CHECKING:
    from torch._ops import OpOverload

    from gradscale.emulation.rounding import Rounding

Parts: TypeAlias = "tuple[Tensor | None, ...]"


def convolution_backward(
    rounding: Rounding,
    func: OpOverload[..., Parts],
    grad: Tensor,
    saved_input: Tensor,
    weight: Tensor,
    *rest: object,
) -> Parts:
    """Gradients of input, weight and bias from the rounded gradient and saved operands.

    The gradient of the bias is a sum, not a product: it adds the gradient as it stands.
    """
    formats = rounding.backward_formats(grad, saved_input, weight)
    if not takes_part(grad, saved_input, weight) or formats is None:
        return func(grad, saved_input, weight, *rest)
    dtype = formats.dtype_for(grad)
    # The gradient is the first operand of both products, the saved ones the second.
    operands = [as_operand(grad, formats.first, dtype)]
    operands += [as_operand(saved, formats.second, dtype) for saved in (saved_input, weight)]
    # The sizes of the bias, the geometry, and last which of the three gradients are wanted.
    *geometry, mask = rest
    wanted = cast("list[bool]", mask)
    products = func(*operands, *geometry, [wanted[0], wanted[1], False])
    bias = None
    if wanted[2]:
        # In float32, as hardware sums: it is rounded once, at the end.
        bias = grad.to(torch.float32).sum([0, *range(2, grad.dim())])
    return tuple(
        None if part is None else as_result(part, formats.result, grad.dtype)
        for part in (products[0], products[1], bias)
    )
