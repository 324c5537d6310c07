"""Which nodes of a walk lie inside one compiled node, as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, cast

import torch

from gradscale.compiled.opened import InnerNode
from gradscale.live_nodes import LiveNode

UNMET = -1


class EdgeLike(Protocol):
    """An edge of a walk; see `gradscale.backward.structure.Edge`."""

    @property
    def source(self) -> int:
        """The node that it leaves."""
        ...

    @property
    def output(self) -> int:
        """Which of the node's gradients goes along it."""
        ...

    @property
    def target(self) -> int:
        """The node that it leads to."""
        ...


class Span(NamedTuple):
    """The nodes inside one compiled node, by their numbers in the walk.

    Attributes:
        nodes: those that the walk met.
        pinned: those of them that stay at the loss scale.
        sources: for each crossing the node it comes from, `UNMET` if no loss leads there.
        targets: for each crossing the node it goes to, `UNMET` if it goes to none.
        device: on which the gradients are.
    """

    nodes: tuple[int, ...]
    pinned: tuple[int, ...]
    sources: tuple[int, ...]
    targets: tuple[int, ...]
    device: torch.device

    def steps(self, exponents: Sequence[int]) -> list[int]:
        """By how many octaves a plan lifts each crossing. What no loss leads to is zero, and at 0.

        Example:
            >>> Span((1,), (), (1, 1), (2, -1), torch.device("cpu")).steps([0, 3, 5])
            [2, -3]
        """
        known = (*exponents, 0)  # UNMET is the last one
        pairs = zip(self.sources, self.targets, strict=True)
        return [known[target] - known[source] for source, target in pairs]


def spans_of(nodes: Sequence[object], edges: Iterable[EdgeLike]) -> tuple[Span, ...]:
    """The spans of a walk, in the order in which they are met.

    Args:
        nodes: live nodes and `InnerNode`s, in the order of the walk.
        edges: of the walk.
    """
    members: dict[LiveNode, dict[int, int]] = {}
    for number, node in enumerate(nodes):
        if isinstance(node, InnerNode):
            members.setdefault(node.live, {})[node.number] = number
    if not members:
        return ()
    targets = {(edge.source, edge.output): edge.target for edge in edges}
    return tuple(_span(nodes, own, targets) for own in members.values())


def _span(
    nodes: Sequence[object], members: dict[int, int], targets: dict[tuple[int, int], int]
) -> Span:
    part = cast(InnerNode, nodes[next(iter(members.values()))]).part
    sources = [members.get(crossing.source, UNMET) for crossing in part.crossings]
    reached = [UNMET] * len(part.crossings)
    for inner, number in members.items():
        for output, place in enumerate(part.leaving[inner]):
            reached[place] = targets.get((number, output), UNMET)
    for place, crossing in enumerate(part.crossings):
        if sources[place] == UNMET and crossing.target >= 0:
            reached[place] = members.get(crossing.target, UNMET)
    pinned = (number for inner, number in members.items() if part.nodes[inner].pinned)
    return Span(tuple(members.values()), tuple(pinned), tuple(sources), tuple(reached), part.device)
