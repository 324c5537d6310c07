"""Which module a node of the backward graph belongs to, for messages and reports."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from gradscale.backward.graph import BackwardGraph

# What wrappers put into module names: DDP, FSDP, torch.compile, activation checkpointing.
WRAPPERS = {"_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module"}


class Place(NamedTuple):
    """Where a node is: in the module that owns a parameter, or on the way from it to the loss."""

    module: str
    inside: bool

    def __str__(self) -> str:
        return self.module if self.inside else f"after {self.module}"


def module_places(graph: BackwardGraph, model: nn.Module) -> tuple[Place | None, ...]:
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
    places: list[Place | None] = [None] * len(graph)
    ready: deque[int] = deque()
    for leaf, parameter in graph.parameters().items():
        if parameter is not None and id(parameter) in owners:
            places[leaf] = Place(owners[id(parameter)], True)
            ready.append(leaf)
    while ready:
        node = ready.popleft()
        below = places[node]
        prepares = node in graph.leaves or len(graph.edges_from(node)) == 1
        for number in graph.edges_into(node):
            above = graph.edges[number].source
            if below is not None and places[above] is None:
                places[above] = Place(below.module, below.inside and prepares)
                ready.append(above)
    return tuple(places)


def describe_node(graph: BackwardGraph, places: tuple[Place | None, ...], node: int) -> str:
    """How to name a node to a person: `encoder.0.linear (AddmmBackward0)`."""
    place = places[node]
    kind = graph.names[node].rpartition("::")[2]
    return f"node {node} ({kind})" if place is None else f"{place} ({kind})"


def _owned(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The name of a module and each parameter of its own; a shared one under its first module."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        plain = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        own = [*module.parameters(recurse=False), *_unsharded(module)]
        for parameter in own:
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield plain or type(module).__name__, parameter


def _unsharded(module: nn.Module) -> list[Tensor]:
    """What FSDP puts in the place of parameters during forward and backward."""
    flat: Any = getattr(getattr(module, "_handle", None), "flat_param", None)
    if flat is not None:
        return [flat]
    get_state: Any = getattr(module, "_get_fsdp_state", None)
    group: Any = getattr(get_state(), "_fsdp_param_group", None) if get_state else None
    sharded: list[Any] = getattr(group, "fsdp_params", [])
    return [p._unsharded_param for p in sharded if hasattr(p, "_unsharded_param")]
