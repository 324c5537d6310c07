"""Where the parts of a network are drawn: from the loss at the left, as the backward pass runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gradscale.recording import Recording
from gradscale.recording.schema import RecordedNetwork

WIDTH = 36
"""Columns before the drawing continues below."""


@dataclass(frozen=True)
class Network:
    """The network as a drawing.

    Attributes:
        known: whether the recording said how the parts hang together; else they are a chain.
        names: of the nodes.
        row: the row of the recording that was measured at a node; -1 for none.
        x: the column of each node, from 0 at the loss.
        y: the line of each node, from 0 at the top.
        edges: pairs of nodes.
    """

    known: bool
    names: tuple[str, ...]
    row: tuple[int, ...]
    x: tuple[float, ...]
    y: tuple[float, ...]
    edges: tuple[tuple[int, int], ...]


def network_of(recording: Recording) -> Network:
    """The recording's largest network; without one its gradient rows, in their order."""
    if recording.structures:
        return _placed(max(recording.structures, key=lambda it: len(it.nodes)), known=True)
    rows = sorted((r for r in recording.rows if r.kind != "activation"), key=lambda r: r.order)
    chain = RecordedNetwork(
        nodes=tuple(row.name for row in rows),
        edges=tuple((i, i + 1) for i in range(len(rows) - 1)),
        rows={index: row.id for index, row in enumerate(rows)},
    )
    return _placed(chain, known=False)


def _placed(structure: RecordedNetwork, *, known: bool) -> Network:
    count = len(structure.nodes)
    depth = depths(count, structure.edges)
    lane = _lanes(depth, structure.edges)
    x, y = _wrapped(depth, lane)
    row = tuple(structure.rows.get(node, -1) for node in range(count))
    return Network(known, structure.nodes, row, x, y, structure.edges)


def depths(count: int, edges: Iterable[tuple[int, int]]) -> list[int]:
    """The longest way to each node from one that nothing leads to.

    Edges of a cycle, which a network of modules can have, are left out.

    Example:
        >>> depths(4, [(0, 1), (1, 2), (0, 2), (2, 3)])
        [0, 1, 2, 3]
    """
    after: list[list[int]] = [[] for _ in range(count)]
    for source, target in edges:
        after[source].append(target)
    depth = [0] * count
    # In this order every way to a node has been seen when it is its turn.
    for node in reversed(_finished(after)):
        for target in after[node]:
            depth[target] = max(depth[target], depth[node] + 1)
    return depth


def _finished(after: list[list[int]]) -> list[int]:
    """Nodes in the order in which a depth-first walk leaves them; edges back are removed."""
    # A stack of our own: a chain of a thousand modules is deeper than Python recurses.
    # 0: not met; 1: on the way from the root to here, where an edge back ends; 2: left.
    state = [0] * len(after)
    order: list[int] = []
    for root in range(len(after)):
        stack = [root] if not state[root] else []
        while stack:
            node = stack[-1]
            if state[node] == 0:
                state[node] = 1
                after[node] = [target for target in after[node] if state[target] != 1]
                stack += [target for target in after[node] if state[target] == 0]
            else:
                stack.pop()
                if state[node] == 1:
                    state[node] = 2
                    order.append(node)
    return order


def _lanes(depth: Sequence[int], edges: Iterable[tuple[int, int]]) -> list[float]:
    """The vertical place of each node within its column: near those that lead to it."""
    before: list[list[int]] = [[] for _ in depth]
    for source, target in edges:
        before[target].append(source)
    columns: dict[int, list[int]] = {}
    for node, column in enumerate(depth):
        columns.setdefault(column, []).append(node)
    lane = [0.0] * len(depth)
    # From the loss on: those that lead to a node have their places by then.
    for column in sorted(columns):
        nodes = columns[column]
        # The mean of those before it: one pass of the barycentre rule (Sugiyama et al. 1981).
        wish = {
            node: sum(lane[s] for s in before[node]) / max(1, len(before[node])) for node in nodes
        }
        nodes.sort(key=lambda node: (wish[node], node))
        for place, node in enumerate(nodes):
            lane[node] = place - (len(nodes) - 1) / 2
    return lane


def _wrapped(
    depth: Sequence[int], lane: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Columns broken into bands of `WIDTH`, each as high as its fullest column."""
    if not depth:
        return (), ()
    # Broken like lines of text: scaled down, a deep network would be a thread.
    bands = [column // WIDTH for column in depth]
    reach = {band: 0.0 for band in bands}
    for band, place in zip(bands, lane, strict=True):
        reach[band] = max(reach[band], abs(place))
    top: dict[int, float] = {}
    used = 0.0
    for band in sorted(reach):
        top[band] = used + reach[band]
        # One line more between bands than within.
        used += 2 * reach[band] + 2
    x = tuple(float(column % WIDTH) for column in depth)
    y = tuple(top[band] + place for band, place in zip(bands, lane, strict=True))
    return x, y
