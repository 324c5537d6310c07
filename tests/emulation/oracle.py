"""The slow, obvious version of an emulated product: round, multiply in float32, round."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gradscale.emulation import DirectionFormats

Bilinear = Callable[[Tensor, Tensor], Tensor]


def product(
    function: Bilinear, a: Tensor, b: Tensor, grad: Tensor, precision: DirectionFormats
) -> tuple[Tensor, Tensor, Tensor]:
    """The result of a bilinear `function` and both gradients, in the dtype of `a`.

    The gradient of a bilinear function is two more products, of the rounded gradient with the other
    rounded operand; autograd of the plain float32 function computes exactly those.
    """
    first, second = (
        precision.forward.round(tensor.detach().float()).requires_grad_() for tensor in (a, b)
    )
    output = function(first, second)
    rounded = precision.backward.round(grad.float())
    grads = torch.autograd.grad(output, (first, second), rounded)
    return (
        precision.forward_result.round(output.detach()).to(a.dtype),
        precision.backward_result.round(grads[0]).to(a.dtype),
        precision.backward_result.round(grads[1]).to(a.dtype),
    )


def emulated_product(
    function: Bilinear, a: Tensor, b: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same three tensors, as the emulation that is active makes them."""
    a, b = a.detach().requires_grad_(), b.detach().requires_grad_()
    output = function(a, b)
    return (output.detach(), *torch.autograd.grad(output, (a, b), grad.to(output.dtype)))


def assert_equal(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    for part, (one, other) in enumerate(zip(found, wanted, strict=True)):
        torch.testing.assert_close(
            one, other, rtol=0, atol=0, equal_nan=True, msg=lambda m, part=part: f"{part}: {m}"
        )


def spread(*shape: int, octaves: float = 12.0) -> Tensor:
    """Random values over many octaves, so that every kind of rounding happens."""
    return torch.randn(shape) * torch.exp2((torch.rand(shape) - 0.5) * octaves)
