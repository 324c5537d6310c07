"""The nodes of a backward graph in topological order, by their names and edges alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gradscale.backward.discovery import NEXT_NODE, NOWHERE, Discovery

LEAF = "torch::autograd::AccumulateGrad"
CAST = "ToCopyBackward0"


class Edge(NamedTuple):
    """Gradient number `output` of node `source` arrives at node `target` as its `input`."""

    source: int
    output: int
    target: int
    input: int


@dataclass(frozen=True, eq=False)
class Topology:
    """The nodes of one discovery, sorted; `order[i]` is the place at which node i was found."""

    order: tuple[int, ...]
    names: tuple[str, ...]
    edges: tuple[Edge, ...]
    roots: tuple[int, ...]
    leaves: tuple[int, ...]
    casts: tuple[int, ...]


class Topologies:
    """Discoveries that were sorted, the latest first.

    They are compared, not hashed: of two graphs the lengths nearly always differ, and of the one
    that is met again every entry must be read in any case, once.

    Args:
        keep: how many to remember.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._known: list[tuple[Discovery, Topology]] = []

    def of(self, discovery: Discovery, roots: int) -> Topology:
        """Sorts a discovery topologically; the same discovery gives the same order.

        Args:
            discovery: whose first `roots` nodes are the roots.
            roots: how many roots there are.
        """
        _, names, found = discovery
        known = self._known
        for place, ((_, other_names, other), topology) in enumerate(known):
            if other == found and other_names == names and len(topology.roots) == roots:
                if place:
                    self._known = [known[place], *known[:place], *known[place + 1 :]]
                return topology
        topology = _sorted(names, found, roots)
        self._known = [(Discovery([], names, found), topology), *known[: self._keep - 1]]
        return topology

    def clear(self) -> None:
        """Forgets all of them."""
        self._known = []


TOPOLOGIES = Topologies(keep=32)


def _sorted(names: tuple[str, ...], found: Sequence[int], roots: int) -> Topology:
    """Kahn's algorithm with a queue, so that a recurrence of any length takes linear time."""
    out = _edges_by_source(found)
    waiting = [0] * len(names)
    for edges in out:
        for edge in edges:
            waiting[edge.target] += 1
    ready = deque(i for i in range(roots) if not waiting[i])
    order: list[int] = []
    while ready:
        node = ready.popleft()
        order.append(node)
        for edge in out[node]:
            waiting[edge.target] -= 1
            if not waiting[edge.target]:
                ready.append(edge.target)
    rank = [0] * len(names)
    for place, node in enumerate(order):
        rank[node] = place
    sorted_names = tuple(names[node] for node in order)
    return Topology(
        order=tuple(order),
        names=sorted_names,
        edges=tuple(
            Edge(rank[node], edge.output, rank[edge.target], edge.input)
            for node in order
            for edge in out[node]
        ),
        roots=tuple(rank[i] for i in range(roots)),
        leaves=tuple(i for i, name in enumerate(sorted_names) if name == LEAF),
        casts=tuple(i for i, name in enumerate(sorted_names) if name == CAST),
    )


def _edges_by_source(found: Sequence[int]) -> list[list[Edge]]:
    out: list[list[Edge]] = [[]]
    output = 0
    for place, following in zip(found, [*found[1:], NEXT_NODE], strict=True):
        if place == NEXT_NODE:
            out.append([])
            output = 0
        elif place >= NOWHERE:
            if place > NOWHERE:
                entry = max(0, NEXT_NODE - following)
                out[-1].append(Edge(len(out) - 1, output, place, entry))
            output += 1
    return out[:-1]
