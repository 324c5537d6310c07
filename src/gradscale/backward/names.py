"""Which module a node of the backward graph belongs to, for messages and reports."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from gradscale.backward.graph import BackwardGraph

# What FSDP, torch.compile and activation checkpointing put into module names.
WRAPPERS = {"_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module"}
# These call what they wrap `module`, which others may call a part of theirs.
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


class ModulePlace(NamedTuple):
    """Where a node is: in the module that owns a parameter, or on the way from it to the loss."""

    module: str
    inside: bool

    def __str__(self) -> str:
        return self.module if self.inside else f"after {self.module}"


def module_places(graph: BackwardGraph, model: nn.Module) -> tuple[ModulePlace | None, ...]:
    """For each node the module whose parameter is nearest below it, by edges.

    A node lies *inside* a module if nothing but casts, transposes and views is between it and a
    parameter of that module; all others come *after* the module that they are nearest to. This
    needs no hook and no change to the model, and costs one walk over the plain graph.

    Returns:
        One place per node; None for a node from which no parameter of `model` is reached.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
        >>> graph = BackwardGraph.of(model(torch.ones(1, 2)).sum())
        >>> for name, place in zip(graph.names[:3], module_places(graph, model)):
        ...     print(name, "|", place)
        SumBackward0 | after 0
        TanhBackward0 | after 0
        AddmmBackward0 | 0
    """
    owners = {id(parameter): name for name, parameter in _owned(model)}
    places: list[ModulePlace | None] = [None] * len(graph)
    ready: deque[int] = deque()
    for leaf, parameter in graph.parameters().items():
        if parameter is not None and id(parameter) in owners:
            places[leaf] = ModulePlace(owners[id(parameter)], True)
            ready.append(leaf)
    while ready:
        node = ready.popleft()
        below = places[node]
        prepares = node in graph.leaves or len(graph.edges_from(node)) == 1
        for number in graph.edges_into(node):
            above = graph.edges[number].source
            if below is not None and places[above] is None:
                places[above] = ModulePlace(below.module, below.inside and prepares)
                ready.append(above)
    return tuple(places)


class ParameterName(NamedTuple):
    """What a parameter is called, and the module that owns it."""

    name: str
    module: str


def parameter_names(model: nn.Module) -> dict[int, ParameterName]:
    """By `id`, the names of a model's parameters, without what wrappers put into them.

    What FSDP puts in a parameter's place for a forward and backward pass has its name too; look it
    up between the two. A shared parameter has the name under which it is met first.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
        >>> parameter_names(model)[id(model[0].weight)]
        ParameterName(name='0.weight', module='0')
    """
    names: dict[int, ParameterName] = {}
    modules = {id(module): path for path, module in _paths(model)}
    for module in model.modules():
        for owner, own, parameter in _named(module):
            path = modules.get(id(owner), modules[id(module)])
            full = ParameterName(f"{path}.{own}".lstrip("."), path or type(owner).__name__)
            names.setdefault(id(parameter), full)
    return names


def plain_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """`named_modules()` without what DDP, FSDP, compilation and checkpointing put into names.

    The model itself, and what is wrapped around it, is named by its class.

    Example:
        >>> model = nn.DataParallel(nn.Sequential(nn.Linear(2, 2)))
        >>> [name for name, _ in plain_modules(model)]
        ['DataParallel', 'Sequential', '0']
    """
    for path, module in _paths(model):
        yield path or type(module).__name__, module


def _paths(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    plain: dict[str, str] = {}
    parallel: set[str] = set()
    for name, module in model.named_modules():
        parent, _, own = name.rpartition(".")
        above = plain.get(parent, "")
        wrapped = own in WRAPPERS or (own == "module" and parent in parallel)
        plain[name] = above if wrapped else f"{above}.{own}".lstrip(".")
        if isinstance(module, _PARALLEL):
            parallel.add(name)
        yield plain[name], module


def _owned(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The name of a module and each parameter of its own; a shared one under its first module."""
    seen: set[int] = set()
    for name, module in plain_modules(model):
        for _, _, parameter in _named(module):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter


def _named(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """A module's own parameters, and what FSDP puts in their place during forward and backward."""
    for name, parameter in module.named_parameters(recurse=False):
        yield module, name, parameter
    flat: Any = getattr(getattr(module, "_handle", None), "flat_param", None)
    if flat is not None:
        yield module, "flat_param", flat
        return
    for sharded in _sharded(module):
        if hasattr(sharded, "_unsharded_param"):
            info = sharded._module_info
            yield info.module, info.param_name, sharded._unsharded_param


def _sharded(module: nn.Module) -> Iterator[Any]:
    """What `fully_shard` keeps of each parameter; torch releases differ in where."""
    get_state: Any = getattr(module, "_get_fsdp_state", None)
    state: Any = get_state() if get_state else None
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:
        groups = [getattr(state, "_fsdp_param_group", None)]
    for group in groups:
        yield from getattr(group, "fsdp_params", [])
