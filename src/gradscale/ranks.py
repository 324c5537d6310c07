"""Decisions that all ranks must take alike: flags and measurements reduced over process groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def sharding_groups(parameters: Iterable[Tensor]) -> list[Any]:
    """The process groups over which distributed gradients (DTensor) are split, each once.

    A gradient that is replicated over a mesh dimension is alike on its ranks and needs no group.
    """
    groups: dict[int, Any] = {}
    for parameter in parameters:
        mesh = getattr(parameter.grad, "device_mesh", None)
        if mesh is None:
            continue
        for dimension, placement in enumerate(parameter.grad.placements):  # pyright: ignore
            if not placement.is_replicate():
                group = mesh.get_group(dimension)
                groups[id(group)] = group
    return list(groups.values())


def reduce_max_(tensors: Iterable[Tensor], groups: Iterable[Any]) -> None:
    """Replaces each tensor by its maximum over every group, in place, without a host read."""
    tensors = list(tensors)
    for group in groups:
        for tensor in tensors:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=group)


def reduce_sum_(tensors: Iterable[Tensor], groups: Iterable[Any]) -> None:
    """Replaces each tensor by its sum over every group, in place, without a host read."""
    tensors = list(tensors)
    for group in groups:
        for tensor in tensors:
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=group)


def differing_ranks(values: Tensor, group: Any = None) -> list[int]:
    """The ranks of `group` whose `values` differ from rank 0's, bit for bit. Reads the host.

    Args:
        values: any shape, the same on every rank.
        group: the process group; None is the default one.

    Returns:
        Ranks within the group, ascending; empty if all agree.
    """
    mine = values.detach().clone()
    gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, mine, group=group)
    return [rank for rank, theirs in enumerate(gathered) if not torch.equal(theirs, gathered[0])]
