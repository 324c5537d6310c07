"""One half-precision gradient on its way to float32, and how its memory lies."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor


class Widening(NamedTuple):
    """One gradient on its way.

    Attributes:
        source: dense, half precision.
        target: float32, the same shape and strides.
        exponent: `source` is stored at ``2**exponent`` times the loss-scaled gradient.
    """

    source: Tensor
    target: Tensor
    exponent: int


def in_memory_order(tensor: Tensor) -> Tensor | None:
    """A flat view of a dense tensor, whatever the order of its dimensions; None if it has gaps.

    Example:
        >>> in_memory_order(torch.arange(6).reshape(2, 3).T)
        tensor([0, 1, 2, 3, 4, 5])
    """
    if tensor.is_contiguous():
        return tensor.view(-1)
    order = sorted(range(tensor.dim()), key=lambda d: (-tensor.stride(d), d))
    ordered = tensor.permute(order)
    return ordered.view(-1) if ordered.is_contiguous() else None


def in_layout_of(grad: Tensor, values: Tensor) -> Tensor:
    """A float32 gradient of the layout of `grad`, holding `values`."""
    if hasattr(grad, "_local_tensor"):
        from torch.distributed.tensor import DTensor

        whole = cast(DTensor, grad)
        return DTensor.from_local(
            values, whole.device_mesh, whole.placements, run_check=False,
            shape=grad.shape, stride=grad.stride(),
        )  # fmt: skip
    if grad.is_sparse:
        return torch.sparse_coo_tensor(
            grad._indices(), values, grad.shape,
            is_coalesced=grad.is_coalesced(), check_invariants=False,
        )  # fmt: skip
    return values
