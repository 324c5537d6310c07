"""What measuring costs, in steps: counted, so that all ranks and every resumed run say the same.

Small tensors cost calls, large ones memory. A step of a graph of tiny tensors takes about as long
for each node as there are calls; that of a graph of large ones, for each element that passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from gradscale.backward.measurements import Measurements

# Nanoseconds, on one core of an AMD EPYC with torch 2.13: a node of a float16 recurrence takes 9 µs
# in a training step, and a place there 45 µs from its hook to the plan (404 to 10,187 nodes). An
# element that is counted takes up to 1.6, in a large tensor less, and there are 3.2 (a ResNet) to
# 6.5 (a GPT) of a step for each. On an accelerator all four are smaller, in about the same
# proportions.
_NODE = 9_000
_PLACE = 45_000
_ELEMENT_OF_STEP = 3
_ELEMENT = 1.5

MOST = 16
"""Steps: so that no plan is older than that many times the usual."""


class MeasuredGraph(NamedTuple):
    """What of one graph was measured in a step.

    Attributes:
        nodes: how many it has.
        passes: how many backward passes went through it.
        measurements: of all of these, on all ranks.
    """

    nodes: int
    passes: int
    measurements: Measurements


def cost_in_steps(graphs: Iterable[MeasuredGraph], ranks: int = 1) -> int:
    """How many steps a measuring step costs beyond itself, rounded up; from 1 to `MOST`.

    Args:
        graphs: those of the step.
        ranks: how many counted.

    Example:
        >>> from gradscale.backward.measurements import Counts, PlaceRecord
        >>> def measured(places, elements):
        ...     counts = Counts(1.0, octaves=(elements,))
        ...     records = [PlaceRecord(n, "arrived", -1, "fp16", 0, counts) for n in range(places)]
        ...     return Measurements("a", tuple(records))
        >>> tiny = MeasuredGraph(10, 1, measured(10, 2))
        >>> large = MeasuredGraph(10, 1, measured(10, 1_000_000))
        >>> cost_in_steps([tiny]), cost_in_steps([large])
        (5, 1)
    """
    measuring = step = 0.0
    for nodes, passes, measurements in graphs:
        elements = sum(record.counts.numel for record in measurements.records) / ranks
        measuring += _PLACE * passes * len(measurements.records) + _ELEMENT * elements
        step += _NODE * passes * nodes + _ELEMENT_OF_STEP * elements
    return min(MOST, max(1, math.ceil(measuring / step))) if step else 1
