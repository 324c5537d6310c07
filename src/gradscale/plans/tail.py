"""How far the gradients of a few heavy steps go beyond those of the others."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from gradscale.backward.graph import BackwardGraph

FARTHEST = 63
"""Octaves of reach: as far as windows go."""

_MOST_DOUBLINGS = 3
"""Eight octaves at a time cross what a format holds in a few."""


class Tail(NamedTuple):
    """What overflows have taught of a graph whose largest gradients are rarely measured.

    A backward pass is linear in the gradient of the loss, so a step that is heavy at one node is
    taken to be heavy at all of them.

    Attributes:
        reach: octaves by which gradients went beyond all that was measured, at least.
        times: how many steps were lost to that.
        steps: among how many.

    Example:
        >>> tail = Tail().after(4)
        >>> tail, tail.share
        (Tail(reach=5, times=1, steps=100), 0.01)
    """

    reach: int = 0
    times: int = 0
    steps: int = 100

    @property
    def share(self) -> float:
        """Of the steps, how many were lost."""
        return self.times / self.steps

    def after(self, room: int | None) -> Tail:
        """After an overflow that left so much room above what was measured; None if unknown.

            reach = max(reach, room) + 1, or + 2 ** min(times, 3) where room >= reach
            times = times + 1

        Where the reach was kept free and was not enough, it grows twice as fast each time. Where it
        was not kept, because small gradients press, more of it would take room from others alone.
        Nothing is learned if there was no room: then what was measured explains the overflow.
        """
        if room is None or room < 0:
            return self
        more = 1 << min(self.times, _MOST_DOUBLINGS) if room >= self.reach else 1
        reach = min(max(self.reach, room) + more, FARTHEST)
        return self._replace(reach=reach, times=self.times + 1)


NO_TAIL = Tail()
"""Nothing was learned: what was measured is all there is."""


class LostStep(NamedTuple):
    """An overflow that no later measurement has explained yet.

    Attributes:
        exponents: of every node, absolute, in that step.
        origins: where it began, if that was measured.
        leaves: whose gradient was infinite or NaN, if that was looked at and `origins` was not.
    """

    exponents: tuple[int, ...]
    origins: tuple[int, ...] = ()
    leaves: tuple[int, ...] = ()


def room_left(graph: BackwardGraph, lost: LostStep, tops: Mapping[int, int]) -> int | None:
    """How far, at least, a lost step went beyond what was measured before and after it.

    Each origin went beyond its own room. What is infinite stays so on its way down: so each spoilt
    leaf has an overflow behind it, at a node that leads to no leaf that is finite, or made what the
    first of these received; and whichever it was had the least room or more. If neither is known,
    it is the least room of all.

    Args:
        graph: the graph.
        lost: the step.
        tops: by node the highest exponent at which nothing that was measured of it overflows, where
            anything was.

    Returns:
        Octaves; negative if what was measured overflows there; None if nothing is known.

    Example:
        >>> import torch
        >>> a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
        >>> graph = BackwardGraph.of((a.exp() + b.sin()).sum())
        >>> octaves = {"SumBackward0": 11, "ExpBackward0": 13, "SinBackward0": 14}
        >>> tops = {n: octaves[name] for n, name in enumerate(graph.names) if name in octaves}
        >>> exponents, (first, second) = (10,) * len(graph), graph.leaves
        >>> room_left(graph, LostStep(exponents, leaves=(first,)), tops)
        3
        >>> room_left(graph, LostStep(exponents, leaves=(first, second)), tops)
        1
    """
    rooms = {node: top - lost.exponents[node] for node, top in tops.items()}
    if lost.origins:
        return max((rooms[node] for node in lost.origins if node in rooms), default=None)
    if lost.leaves:
        return _least_behind(graph, rooms, lost.leaves)
    return min(rooms.values(), default=None)


def _least_behind(
    graph: BackwardGraph, rooms: Mapping[int, int], nonfinite: Collection[int]
) -> int | None:
    bad = set(nonfinite)
    spared = [node in graph.leaves and node not in bad for node in range(len(graph))]
    for edge in reversed(graph.edges):
        spared[edge.source] |= spared[edge.target]
    least = dict(rooms)
    for edge in graph.edges:  # in topological order of their sources
        if edge.source in least and not spared[edge.target]:
            above = least[edge.source]
            least[edge.target] = min(above, least.get(edge.target, above))
    return max((least[leaf] for leaf in bad if leaf in least), default=None)
