"""Where in its windows a group is put, and which exponent the loss scale takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from gradscale.backward.graph import BackwardGraph
from gradscale.backward.plan import LARGEST_EXPONENT
from gradscale.plans.window import FAR, Window, intersection
from gradscale.plans.windows_partition import Interval


def anchored(
    groups: Sequence[Sequence[int]], intervals: dict[int, Interval], slack: int
) -> dict[int, int]:
    """Each group as high as its windows allow, or at one in use at most `slack` octaves below."""
    spans = [
        (min(intervals[n][1] for n in nodes), max(intervals[n][0] for n in nodes), index)
        for index, nodes in enumerate(groups)
    ]
    used: list[int] = []
    exponents: dict[int, int] = {}
    for hi, lo, index in sorted(spans):
        if hi >= FAR and lo <= -FAR:
            continue  # nothing in it limits the exponent: it follows the loss scale
        near = [exponent for exponent in used if max(lo, hi - slack) <= exponent <= hi]
        exponent = max(near, default=hi)
        used.append(exponent)
        exponents.update((node, exponent) for node in groups[index])
    return exponents


def loss_exponent(
    graph: BackwardGraph, windows: Sequence[Window], exponents: dict[int, int], before: int
) -> int:
    """The exponent that spares most edges to leaves and pinned nodes a multiplication."""
    fixed = graph.fixed
    votes: Counter[int] = Counter()
    for edge in graph.edges:
        for one, other in ((edge.source, edge.target), (edge.target, edge.source)):
            if one in exponents and other in fixed:
                votes[exponents[one]] += 1
    if not votes:
        votes.update(exponents.values())
    allowed = intersection(windows[node] for node in fixed)
    within = {e: n for e, n in votes.items() if e in allowed} or dict(votes)
    if not within:
        return before
    best = max(within, key=lambda e: (within[e], e == before, e))
    best = max(allowed.lo, min(best, allowed.hi))
    # A plan reaches LARGEST_EXPONENT octaves from the loss scale; where it cannot reach both ends,
    # the lower one, which would overflow, counts.
    best = max(best, max(exponents.values(), default=best) - LARGEST_EXPONENT)
    return min(best, min(exponents.values(), default=best) + LARGEST_EXPONENT)
