"""Decisions that all ranks must take alike: flags and measurements reduced over process groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast

import torch
import torch.distributed as dist
from torch import Tensor

from gradscale.optimizer_parameters import parameters_of

if TYPE_CHECKING:  # torch may have been built without either
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

Ranks: TypeAlias = "ProcessGroup | DeviceMesh"
"""Ranks that decide alike: a process group, or a mesh, which stands for all of its dimensions."""

# Asked in every step, and never another while a process lives.
_BUILT_IN = dist.is_available()
_FLAT = "_fsdp_flattened"
"""What FSDP1 marks its flat parameters with, and the views of them that optimizers are given."""


class NoteStore(Protocol):
    """What is asked of a store of the process group: notes by name, which every rank can read."""

    def set(self, key: str, value: str, /) -> None:
        """Leaves a note."""
        ...

    def get(self, key: str, /) -> bytes:
        """Reads a note; waits for one that is not there."""
        ...

    def check(self, keys: list[str], /) -> bool:
        """Whether these notes are there."""
        ...

    def compare_set(self, key: str, expected: str, value: str, /) -> bytes:
        """Leaves a note where there is none, for an `expected` of ""; returns what is there."""
        ...


def check_process_group(call: str, process_group: object) -> None:
    """Refuses what stands for no ranks; where there is only this one nothing else would notice.

    Raises:
        TypeError: if it is neither a process group nor a device mesh.

    Example:
        >>> check_process_group("watch", 3)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        TypeError: `watch(process_group=3)` must be a process group or a device mesh. Pass ...
    """
    if process_group is None or hasattr(process_group, "get_all_groups"):
        return
    # A rank outside of a new group is given a number in its place.
    if not _BUILT_IN or not (
        isinstance(process_group, dist.ProcessGroup)
        or process_group == dist.GroupMember.NON_GROUP_MEMBER
    ):
        raise TypeError(
            f"`{call}(process_group={process_group!r})` must be a process group or a device mesh. "
            "Pass what `torch.distributed.new_group(ranks)` or `init_device_mesh(…)` returns."
        )


def distributed() -> bool:
    """Whether there is more than this one rank."""
    return _BUILT_IN and dist.is_initialized() and dist.get_world_size() > 1


def all_ranks() -> ProcessGroup | None:
    """The process group of all ranks; None if there is only this one."""
    return dist.group.WORLD if distributed() else None


def default_store() -> NoteStore | None:
    """The key-value store by which the ranks found each other; None if there is none."""
    from torch.distributed import distributed_c10d

    # No public way leads there; a torch without this one has no digest of replicas.
    find = getattr(distributed_c10d, "_get_default_store", None)
    try:
        return None if find is None else find()
    except (RuntimeError, ValueError):  # the process group came without one (MPI)
        return None


def groups_of(optimizer: torch.optim.Optimizer, process_group: Ranks | None) -> list[ProcessGroup]:
    """The process groups over which the ranks that share this optimizer's step must agree.

    Args:
        optimizer: its sharded parameters bring their groups along: DTensors those of their mesh,
            flat ones (FSDP1), which do not tell theirs, all ranks.
        process_group: one more, or None; a `DeviceMesh` stands for all of its dimensions. It is
            taken for the ranks of flat parameters.
    """
    if not (_BUILT_IN and dist.is_initialized()):
        return []
    parameters = parameters_of(optimizer)
    groups = _deciding_groups(parameters)
    if process_group is None and any(getattr(p, _FLAT, False) for p in parameters):
        process_group = all_ranks()
    own = mesh_groups(process_group)
    return groups + [group for group in own if not any(group is other for other in groups)]


def mesh_groups(process_group: Ranks | None) -> list[ProcessGroup]:
    """A process group, those of a `DeviceMesh`, or none for None, as a list."""
    if process_group is None:
        return []
    # Asked by attribute: the class of meshes is an import that most runs have no use for.
    if hasattr(process_group, "mesh"):
        return cast("DeviceMesh", process_group).get_all_groups()
    return [cast("ProcessGroup", process_group)]


def agreed_index(index: int, groups: Iterable[ProcessGroup], like: Tensor) -> int:
    """The largest `index` of all ranks of `groups`. Reads the host.

    Args:
        index: this rank's, small and not negative.
        groups: the process groups.
        like: a tensor on the device that the groups communicate on.
    """
    # As a float, which every backend reduces.
    code = torch.full((), float(index), dtype=torch.float32, device=like.device)
    reduce_max_([code], groups)
    return int(code.item())


def _deciding_groups(parameters: Iterable[Tensor]) -> list[ProcessGroup]:
    """The groups of all dimensions of the meshes of distributed parameters, each once.

    Those of replicas, too: their gradients are alike after the reduction, unless a hook or a
    flipped bit makes them differ, and then one replica would step where the other skips.
    """
    groups: dict[int, ProcessGroup] = {}
    for mesh in dict.fromkeys(mesh for it in parameters if (mesh := _mesh_of(it)) is not None):
        for dimension in range(mesh.ndim):
            if mesh.size(dimension) > 1:
                group = mesh.get_group(dimension)
                groups[id(group)] = group
    return list(groups.values())


def _mesh_of(parameter: Tensor) -> DeviceMesh | None:
    return getattr(parameter, "device_mesh", None)  # as DTensors have, without importing them


def sharding_groups(parameters: Iterable[Tensor]) -> list[ProcessGroup]:
    """The process groups over which distributed parameters (DTensor) are split, each once.

    A norm is summed over these. Asked of the parameters rather than of their gradients, because a
    rank may lack a gradient, and a collective that it leaves out would never end.
    """
    groups: dict[int, ProcessGroup] = {}
    for parameter in parameters:
        mesh = _mesh_of(parameter)
        if mesh is None:
            continue
        for dimension, placement in enumerate(parameter.placements):  # pyright: ignore
            if not placement.is_replicate():
                group = mesh.get_group(dimension)
                groups[id(group)] = group
    return list(groups.values())


def reduce_max_(tensors: Iterable[Tensor], groups: Iterable[ProcessGroup]) -> None:
    """Replaces each tensor by its maximum over every group, in place, without a host read."""
    tensors = list(tensors)
    for group in groups:
        for tensor in tensors:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=group)


def reduce_sum_(tensors: Iterable[Tensor], groups: Iterable[ProcessGroup]) -> None:
    """Replaces each tensor by its sum over every group, in place, without a host read."""
    tensors = list(tensors)
    for group in groups:
        for tensor in tensors:
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=group)


def differing_ranks(values: Tensor, group: ProcessGroup | None = None) -> list[int]:
    """The ranks of `group` whose `values` differ from rank 0's, bit for bit. Reads the host.

    Args:
        values: any shape, the same on every rank.
        group: the process group; None is the default one.

    Returns:
        Ranks within the group, ascending; empty if all agree, or if there is only one rank.
    """
    if not distributed():
        return []
    mine = values.detach().clone()
    gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, mine, group=group)
    return [rank for rank, theirs in enumerate(gathered) if not torch.equal(theirs, gathered[0])]
