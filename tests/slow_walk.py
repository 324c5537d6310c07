"""The walk as one would write it down: slow, without a cache, the oracle of the fast one."""

from __future__ import annotations

from typing import Any, NamedTuple


class SlowGraph(NamedTuple):
    """Nodes in topological order, their names, and edges (source, output, target, input)."""

    nodes: list[Any]
    names: list[str]
    edges: list[tuple[int, int, int, int]]


def slow_walk(roots: list[Any]) -> SlowGraph:
    """Asks every node for its name and edges, counts what leads to it, and sorts (Kahn)."""
    met: list[Any] = []
    for root in roots:
        if root not in met[: len(roots)]:
            met.append(root)
    number_roots = len(met)
    known = set(met)
    waiting: dict[Any, int] = {}
    for node in met:
        for target, _ in node.next_functions:
            if target is None:
                continue
            waiting[target] = waiting.get(target, 0) + 1
            if target not in known:
                known.add(target)
                met.append(target)
    ready = [node for node in met[:number_roots] if not waiting.get(node)]
    for node in ready:
        for target, _ in node.next_functions:
            if target is not None:
                waiting[target] -= 1
                if not waiting[target]:
                    ready.append(target)
    rank = {node: number for number, node in enumerate(ready)}
    edges = [
        (rank[node], output, rank[target], entry)
        for node in ready
        for output, (target, entry) in enumerate(node.next_functions)
        if target is not None
    ]
    return SlowGraph(ready, [node.name() for node in ready], edges)
