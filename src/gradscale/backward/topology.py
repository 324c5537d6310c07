"""The nodes of a backward graph in topological order, by their names and edges alone."""

from __future__ import annotations

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


class _Columns(NamedTuple):
    """The edges of a discovery, by source: node i's are at `first[i]` up to `first[i + 1]`."""

    first: list[int]
    outputs: list[int]
    targets: list[int]
    inputs: list[int]


# A structure may be met once only, as with sequences of ever new lengths. So what is made on the
# way is numbers: of tens of thousands of small objects Python's collector looks at each, again and
# again, and at all others that the program has.
def _sorted(names: tuple[str, ...], found: Sequence[int], roots: int) -> Topology:
    """Kahn's algorithm with a queue, so that a recurrence of any length takes linear time."""
    first, outputs, targets, inputs = _columns(found)
    waiting = [0] * len(names)
    for target in targets:
        waiting[target] += 1
    order = [i for i in range(roots) if not waiting[i]]
    by_rank: list[int] = []
    sources: list[int] = []
    for place, node in enumerate(order):  # grows as it goes
        edges = range(first[node], first[node + 1])
        by_rank += edges
        for edge in edges:
            sources.append(place)
            target = targets[edge]
            waiting[target] -= 1
            if not waiting[target]:
                order.append(target)
    rank = [0] * len(names)
    for place, node in enumerate(order):
        rank[node] = place
    sorted_names = tuple([names[node] for node in order])
    columns = (
        sources,
        [outputs[edge] for edge in by_rank],
        [rank[targets[edge]] for edge in by_rank],
        [inputs[edge] for edge in by_rank],
    )
    return Topology(
        order=tuple(order),
        names=sorted_names,
        edges=tuple(map(Edge._make, zip(*columns, strict=True))),
        roots=tuple(rank[:roots]),
        leaves=tuple([i for i, name in enumerate(sorted_names) if name == LEAF]),
        casts=tuple([i for i, name in enumerate(sorted_names) if name == CAST]),
    )


def _columns(found: Sequence[int]) -> _Columns:
    columns = first, outputs, targets, inputs = _Columns([0], [], [], [])
    output = 0
    for place in found:
        if place > NOWHERE:
            outputs.append(output)
            targets.append(place)
            inputs.append(0)
            output += 1
        elif place == NEXT_NODE:
            first.append(len(targets))
            output = 0
        elif place == NOWHERE:
            output += 1
        else:
            inputs[-1] = NEXT_NODE - place
    return columns
