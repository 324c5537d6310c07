"""Every node of a live graph, and where its gradients go: one visit of each."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from operator import attrgetter
from typing import NamedTuple, cast

import torch

from gradscale.compiled.opened import COMPILED, Opening
from gradscale.live_nodes import LiveNode

NEXT_NODE = -2
"""What closes the list of a node's outputs."""

NOWHERE = -1
"""The place of an output's target where it has none."""

Outputs = tuple[tuple[LiveNode | None, int], ...]


class Discovery(NamedTuple):
    """The nodes in the order in which they were met; equal for two iterations of a program.

    Attributes:
        nodes: each once, the roots first.
        names: what torch calls them.
        found: for each node in turn the places of the targets of its outputs, `NOWHERE` where an
            output leads nowhere, and a closing `NEXT_NODE`. Behind a place follows
            `NEXT_NODE - input` if the gradient does not arrive at the target's input 0.
    """

    nodes: list[LiveNode]
    names: tuple[str, ...]
    found: list[int]


def discover(roots: Sequence[LiveNode], opening: Opening) -> Discovery:
    """Follows every edge from these nodes, breadth first and without recursion.

    Args:
        roots: each once.
        opening: looks into compiled nodes.
    """
    nodes, found = _followed(roots, attrgetter("next_functions"))
    names = _names_of(nodes)
    # To ask at every edge costs a fifth of the walk, and compiled graphs have few nodes.
    if COMPILED in names:
        nodes, found = _followed(roots, _seen_inside(opening))
        names = _names_of(nodes)
    return Discovery(nodes, names, found)


# Run for every node of every step that follows a plan. Nothing but the edges themselves tells that
# the graph is the one of the step before, and reading them is most of the cost. Inputs other than 0
# are rare, so only they are noted: a list that is shorter is also compared sooner.
def _followed(
    roots: Sequence[LiveNode], outputs_of: Callable[[LiveNode], Outputs]
) -> tuple[list[LiveNode], list[int]]:
    nodes = list(roots)
    places: dict[LiveNode | None, int] = {node: place for place, node in enumerate(nodes)}
    places[None] = NOWHERE
    new = len(nodes)
    found: list[int] = []
    place_of, note, append = places.setdefault, found.append, nodes.append
    for outputs in map(outputs_of, nodes):  # grows as it goes
        for target, entry in outputs:
            place = place_of(target, new)
            note(place)
            if entry:
                note(NEXT_NODE - entry)
            if place == new and target is not None:
                new += 1
                append(target)
        note(NEXT_NODE)
    return nodes, found


def _seen_inside(opening: Opening) -> Callable[[LiveNode], Outputs]:
    custom = torch.autograd.function.BackwardCFunction

    def outputs_of(node: LiveNode) -> Outputs:
        return tuple(
            opening.at(target, entry) if isinstance(target, custom) else (target, entry)
            for target, entry in node.next_functions
        )

    return outputs_of


_NAMES: dict[Hashable, str] = {}
"""By type, the names of torch's own nodes: asking a node makes a new string each time."""


def _names_of(nodes: Sequence[LiveNode]) -> tuple[str, ...]:
    names = [*map(_NAMES.get, map(type, nodes))]
    if None in names:
        names = [_NAMES.get(type(node)) or _name_of(node) for node in nodes]
    return cast("tuple[str, ...]", tuple(names))


def _name_of(node: LiveNode) -> str:
    """Its name; noted for the type where all nodes of that have one name, and it lives forever.

    Torch's type `CppFunction` stands for whatever has no type of its own.
    """
    name, kind = node.name(), type(node)
    own = getattr(torch._C, "_functions", None)
    if getattr(own, kind.__name__, None) is kind and name.endswith(kind.__name__):
        _NAMES[kind] = name
    return name
