"""The norm of all gradients as they are, in one reading pass that no finite gradient overflows.

In which dtype it is summed, and when a second time, is `norm_rule.py`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from gradscale.accelerators import widest_float
from gradscale.gradients.norm_rule import joined, smallest_norm, sum_dtype
from gradscale.gradients.unscale import gradient_values, tensor_values
from gradscale.ranks import sharding_groups

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Splits: TypeAlias = "tuple[ProcessGroup, ...]"
"""Over whom gradients are split: over nobody, or over these."""

Lists = dict[tuple[torch.device, torch.dtype], list[Tensor]]


class Norm(NamedTuple):
    """A norm as it was summed, and the dtype of those gradients that it is the norm of.

    Attributes:
        value: 0-d; not finite exactly if a gradient is not.
        dtype: float64 if there are float64 gradients, else float32.
    """

    value: Tensor
    dtype: torch.dtype


def gradient_norm(
    parameters: Iterable[Tensor], norm_type: float = 2.0, foreach: bool | None = None
) -> Norm | None:
    """The norm of all gradients together, seen as one vector.

    Sharded gradients (DTensor) are reduced over the ranks that hold the other shards.

    Args:
        parameters: the owners of the gradients, each once.
        norm_type: the order p, or infinity for the largest magnitude. Only of positive orders is
            the norm of gradients that are not finite not finite either.
        foreach: as in `torch.nn.utils.clip_grad_norm_`.

    Returns:
        The norm, on the first gradient's device; None if there are no gradients.

    Example:
        >>> parameter = torch.nn.Parameter(torch.zeros(2))
        >>> parameter.grad = torch.tensor([3e20, 4e20])
        >>> f"{gradient_norm([parameter]).value.item():.3g}"
        '5e+20'
    """
    totals: list[Tensor] = []
    found = _by_ranks(parameters)
    for ranks, lists in found.items():
        local = _local_norm(lists, norm_type, foreach)
        totals.append(_over_ranks(local, norm_type, ranks) if ranks else local)
    if not totals:
        return None
    # The dtype of the gradients, not of the sum: what a caller sees is as wide as torch's.
    wide = any(dtype is torch.float64 for lists in found.values() for _, dtype in lists)
    total = totals[0] if len(totals) == 1 else joined(totals, norm_type)
    return Norm(total, torch.float64 if wide else torch.float32)


def _by_ranks(parameters: Iterable[Tensor]) -> dict[Splits, Lists]:
    """The gradients by the process groups over which they are split, by device, and by dtype."""
    found: dict[Splits, Lists] = {}
    device = dtype = None
    bucket: list[Tensor] = []
    for parameter in parameters:
        grad = parameter.grad
        if grad is None:
            if hasattr(parameter, "placements"):
                # Other ranks may have a gradient here; a collective left out would never end.
                _bucket(found, tuple(sharding_groups([parameter])), parameter)
            continue
        if type(grad) is Tensor and grad.layout is torch.strided and not grad.is_complex():
            # Neighbors mostly share device and dtype, and hashing both for each is costly.
            if grad.dtype is not dtype or grad.device != device:
                device, dtype = grad.device, grad.dtype
                bucket = _bucket(found, (), grad)
            bucket.append(grad)
            continue
        if grad.is_sparse:  # duplicates count as their sum
            grad = parameter.grad = grad.coalesce()
        ranks: Splits = ()
        if hasattr(grad, "placements"):
            grad, ranks = _shard(grad)
        values = gradient_values(parameter) if grad is parameter.grad else tensor_values(grad)
        if values is not None:
            _bucket(found, ranks, values).append(values)
    return found


def _bucket(found: dict[Splits, Lists], ranks: Splits, like: Tensor) -> list[Tensor]:
    return found.setdefault(ranks, {}).setdefault((like.device, like.dtype), [])


def _shard(grad: Tensor) -> tuple[Tensor, Splits]:
    """This rank's part of a distributed gradient, and over whom it is split.

    A gradient that is still a partial sum is summed first: its norm is not that of its parts.
    """
    if any(placement.is_partial() for placement in grad.placements):  # pyright: ignore
        return grad.full_tensor(), ()  # pyright: ignore
    return grad, tuple(sharding_groups([grad]))


def _local_norm(lists: Lists, norm_type: float, foreach: bool | None) -> Tensor:
    norms = [
        norm
        for (device, dtype), grads in lists.items()
        for norm in _norms(grads, norm_type, _dtype(device, dtype, norm_type), foreach)
    ]
    if not norms:
        device, dtype = next(iter(lists))
        return torch.zeros((), dtype=torch.promote_types(dtype, torch.float32), device=device)
    total = joined(norms, norm_type)
    if total.is_cpu and not smallest_norm(norm_type) <= total.item() < math.inf:
        # Beyond what squares can show in float32. The rule of `norm_rule`: on the CPU the host
        # knows for nothing, and the second pass is rare.
        every = [g for grads in lists.values() for g in grads]
        total = joined(_norms(every, norm_type, torch.float64, False), norm_type)
    return total


def _dtype(device: torch.device, dtype: torch.dtype, norm_type: float) -> torch.dtype:
    return torch.promote_types(dtype, sum_dtype(device, norm_type))


def _norms(
    grads: list[Tensor], norm_type: float, dtype: torch.dtype, foreach: bool | None
) -> list[Tensor]:
    grads = [grad for grad in grads if grad.numel()]
    if not grads:
        return []
    if foreach is not False:
        if grads[0].dtype == dtype:
            return list(torch._foreach_norm(grads, norm_type))  # pyright: ignore
        return list(torch._foreach_norm(grads, norm_type, dtype=dtype))  # pyright: ignore
    return [torch.linalg.vector_norm(grad, norm_type, dtype=dtype) for grad in grads]


def _over_ranks(norm: Tensor, norm_type: float, ranks: Splits) -> Tensor:
    if norm_type == 0:
        raise ValueError(
            "`clip_grad_norm_(norm_type=0)` of sharded gradients: torch counts tensors, which each "
            "rank sees in part. Pass another order, such as 2.0."
        )
    largest = math.isinf(norm_type)
    # Norms of shards do not add up, their powers do; and a square leaves float32 from 2^64 on.
    wide = norm.to(widest_float(norm.device))
    total = wide if largest else wide**norm_type
    extreme = dist.ReduceOp.MAX if norm_type > 0 else dist.ReduceOp.MIN
    operation = extreme if largest else dist.ReduceOp.SUM
    for group in ranks:
        dist.all_reduce(total, op=operation, group=group)
    return total if largest else total ** (1 / norm_type)
