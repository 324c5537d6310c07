"""In which dtype the powers of gradients are summed to a norm, and whether they fit it.

Squares of float32 gradients overflow from 2^64 on, and loss scaling brings gradients closer to
that. So accelerators sum in float64 where they have it: a sum is bound by memory, not arithmetic.
The CPU sums as torch does, in float32, and again in float64 only where squares do not fit, being
too large or, at a tiny scale, too small. Half precision is summed in float32 at least.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from gradscale.accelerators import widest_float

SMALLEST_NORM = 2.0**-50
"""From here on float32 flushes no square that matters to the sum.

It flushes those below 2^-150. Of a sum from 2^-100 on each is less than 2^-50, so that it takes
2^26 of them to make half a unit in the last place of the sum.
"""

Norms = TypeVar("Norms")


def sum_dtype(device: torch.device, norm_type: float) -> torch.dtype:
    """The narrowest dtype in which powers are summed first."""
    narrow = device.type == "cpu" or math.isinf(norm_type)
    return torch.float32 if narrow else widest_float(device)


def smallest_norm(norm_type: float) -> float:
    """The same of order p: where the sum of powers p > 2 is 2^-100 again."""
    # norm^p = 2^-100 at norm = 2^(-100/p), which is SMALLEST_NORM^(2/p).
    return SMALLEST_NORM ** (2 / max(2.0, norm_type))


def joined(norms: Sequence[Tensor], norm_type: float) -> Tensor:
    """The norm of vectors, given theirs: on the device of the first, in the widest of their dtypes.

    Example:
        >>> joined([torch.tensor(3.0), torch.tensor(4.0, dtype=torch.float64)], 2.0)
        tensor(5., dtype=torch.float64)
    """
    dtype = norms[0].dtype
    for norm in norms[1:]:
        # Mostly they agree, and this is asked of every tensor in every step.
        dtype = torch.promote_types(dtype, norm.dtype) if norm.dtype != dtype else dtype
    device = norms[0].device
    same = [norm.to(device=device, dtype=dtype, non_blocking=True) for norm in norms]
    return torch.linalg.vector_norm(torch.stack(same), norm_type)


def with_norm(
    gradients: Sequence[Tensor], norm_type: float, use: Callable[[Tensor], Sequence[Tensor]]
) -> list[Tensor]:
    """What `use` makes of the norm, by the rule above and without reading it on the host.

    So where the rule would read, both sums are made, and the results are chosen on the device.

    Args:
        gradients: not empty, on one device.
        norm_type: the order.
        use: given the norm, 0-d and float32 or float64.

    Returns:
        Of the dtypes that `use` returns for float64 where both were made.

    Example:
        >>> huge = [torch.tensor([3e30, 4e30])]
        >>> with_norm(huge, 2.0, lambda norm: [norm, norm / 1e30])
        [tensor(5.0000e+30, dtype=torch.float64), tensor(5.0000, dtype=torch.float64)]
    """
    device = gradients[0].device
    first = _norm_in(sum_dtype(device, norm_type), gradients, norm_type)
    if device.type != "cpu" or first.dtype is torch.float64:
        return list(use(first))
    # Summed twice always: which one holds is chosen on the device, and a graph has no branches.
    exact = use(_norm_in(torch.float64, gradients, norm_type))
    fits = (first >= smallest_norm(norm_type)) & (first < math.inf)
    return [
        torch.where(fits, own.to(wide.dtype), wide)
        for own, wide in zip(use(first), exact, strict=True)
    ]


def _norm_in(dtype: torch.dtype, gradients: Sequence[Tensor], norm_type: float) -> Tensor:
    norms = [
        torch.linalg.vector_norm(each, norm_type, dtype=torch.promote_types(each.dtype, dtype))
        for each in gradients
    ]
    return joined(norms, norm_type)
