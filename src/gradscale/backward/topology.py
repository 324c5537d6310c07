"""The nodes of a backward graph in topological order, by their names and edges alone."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from gradscale.backward.discovery import NEXT_NODE

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


@lru_cache(maxsize=32)
def topology_of(names: tuple[str, ...], found: tuple[int, ...], roots: int) -> Topology:
    """Sorts a discovery topologically; the same discovery gives the same order.

    Kahn's algorithm with a queue, so that a recurrence of any length is walked in linear time.

    Args:
        names: of the nodes, in the order of discovery; the first `roots` are the roots.
        found: see `Discovery`.
        roots: how many roots there are.
    """
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


def _edges_by_source(found: tuple[int, ...]) -> list[list[Edge]]:
    out: list[list[Edge]] = [[]]
    output, place = 0, 0
    while place < len(found):
        target = found[place]
        if target == NEXT_NODE:
            out.append([])
            output, place = 0, place + 1
            continue
        if target >= 0:
            out[-1].append(Edge(len(out) - 1, output, target, found[place + 1]))
        output, place = output + 1, place + 2
    return out[:-1]
