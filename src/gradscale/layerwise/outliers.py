"""What overflows teach: steps whose gradients go beyond all that was measured, and how many."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from gradscale.backward.graph import BackwardGraph
from gradscale.plans.tail import Tail

FORGETTING = 1000
"""Steps without an overflow after which an octave of reach is given up."""

FARTHEST = 63
"""Octaves: as far as windows reach."""

_FEW = 100
"""Steps that a plan is in force at least: one overflow among fewer is one among so many."""


class Outliers(NamedTuple):
    """Heavy steps of one graph structure, as integers that a checkpoint holds.

        overflow, `room` octaves    reach = max(reach + 1, room + 1)
        below which was measured    times = times + 1
        each `FORGETTING` steps     reach = reach - 1
        without one                 times = times // 2

    So a scale that the reach holds down rises an octave at a time, as under torch's scaler, and
    what overflows again is held down for longer.

    Attributes:
        reach: octaves by which gradients went beyond what was measured, at least.
        times: overflows that still count.
        step: the step of the last of them.

    Example:
        >>> seen = Outliers().overflowed(70, room=4)
        >>> seen, seen.tail(100), seen.tail(1070)
        (Outliers(reach=5, times=1, step=70), Tail(reach=5, share=0.01), Tail(reach=4, share=0.0))
    """

    reach: int = 0
    times: int = 0
    step: int = 0

    def overflowed(self, step: int, room: int) -> Outliers:
        """After an overflow where `room` octaves had been left above all that was measured.

        Nothing is learned from one where there was no room: that had to be expected.
        """
        if room < 0:
            return self
        reach, times = self._faded(step)
        return Outliers(min(max(reach, room) + 1, FARTHEST), times + 1, step)

    def tail(self, step: int) -> Tail:
        """What a planner is told at this step."""
        reach, times = self._faded(step)
        return Tail(reach, times / max(_FEW, min(step, FORGETTING)))

    def _faded(self, step: int) -> tuple[int, int]:
        octaves = max(0, step - self.step) // FORGETTING
        return max(0, self.reach - octaves), self.times >> octaves


def least_room(
    graph: BackwardGraph, rooms: Sequence[int], nonfinite: Collection[int]
) -> int | None:
    """How far, at least, a step went beyond what was measured, from the leaves that it spoilt.

    What is infinite stays so on its way down. So each spoilt leaf has an overflow behind it, at a
    node that leads to no leaf that is finite, and that one had the least room or more.

    Args:
        graph: the graph.
        rooms: for each node the octaves between the largest gradient that was measured there and
            overflow.
        nonfinite: the leaf nodes whose gradient is infinite or NaN.

    Returns:
        None if no leaf is, or none has such a node behind it.

    Example:
        >>> import torch
        >>> a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
        >>> graph = BackwardGraph.of((a.exp() + b.sin()).sum())
        >>> rooms = {"SumBackward0": 1, "AddBackward0": 2, "ExpBackward0": 3, "SinBackward0": 4}
        >>> rooms = [rooms.get(name, 9) for name in graph.names]
        >>> first, second = graph.leaves
        >>> least_room(graph, rooms, [first]), least_room(graph, rooms, [first, second])
        (3, 1)
    """
    bad = set(nonfinite)
    spared = [node in graph.leaves and node not in bad for node in range(len(graph))]
    for edge in reversed(graph.edges):
        spared[edge.source] |= spared[edge.target]
    least = [None if out else room for out, room in zip(spared, rooms, strict=True)]
    for edge in graph.edges:
        above, here = least[edge.source], least[edge.target]
        if above is not None and here is not None:
            least[edge.target] = min(above, here)
    return max((room for leaf in bad if (room := least[leaf]) is not None), default=None)
