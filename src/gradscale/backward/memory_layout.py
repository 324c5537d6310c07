"""A product that lies in memory like what was multiplied, so that sums over it keep their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def in_its_layout(grad: Tensor, multiply: Callable[[Tensor], Tensor]) -> Tensor:
    """`multiply(grad)`, expanded where `grad` is, and with gaps where it has gaps.

    What an elementwise operator makes is dense. A sum over it runs in another order than one over a
    gradient of which all elements share one place, as behind `loss.sum()`, or whose rows lie apart,
    as behind a `torch.cat`; so a product by a power of two would not give the same bits.

    Each place is multiplied once, and gaps are one element wide, however wide those of `grad` are.
    Autograd-differentiable when gradients are being recorded.

    Args:
        grad: any tensor; what is no plain, strided one, or is contiguous, is multiplied as it is.
        multiply: elementwise.

    Example:
        >>> grad = torch.ones(()).expand(2, 3)
        >>> in_its_layout(grad, lambda part: part * 4).stride()
        (0, 0)
        >>> in_its_layout(torch.ones(2, 9)[:, :3], lambda part: part * 4).stride()
        (4, 1)
    """
    if type(grad) is not Tensor or grad.layout is not torch.strided or grad.is_contiguous():
        return multiply(grad)
    once = each_once(grad)
    product = multiply(once)
    apart = _apart(once.shape, once.stride())
    if apart is not None:
        product = product.new_empty_strided(product.shape, apart).copy_(product)
    return product.expand(grad.shape)


def each_once(grad: Tensor) -> Tensor:
    """The smallest view that holds every element of a strided tensor that lies at its own place.

    Example:
        >>> each_once(torch.ones(2, 1).expand(2, 3)).shape
        torch.Size([2, 1])
    """
    for dim, stride in enumerate(grad.stride()):
        if stride == 0:
            grad = grad.narrow(dim, 0, 1)
    return grad


def _apart(shape: Sequence[int], strides: Sequence[int]) -> list[int] | None:
    """Strides in the same order, which touch where those do; None if all do, or some overlap."""
    apart = [1] * len(shape)
    end = end_before = 1
    for dim in sorted(range(len(shape)), key=strides.__getitem__):
        if shape[dim] == 1:
            continue
        if strides[dim] < end_before:
            return None
        apart[dim] = end + (strides[dim] > end_before)
        end, end_before = apart[dim] * shape[dim], strides[dim] * shape[dim]
    dense = end == torch.Size(shape).numel()
    return None if dense else apart
