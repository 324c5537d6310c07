"""The default planner: the fewest groups of nodes in which nothing overflows and little is lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from gradscale.backward.graph import BackwardGraph
from gradscale.backward.measure_sample import FINEST_SHARE
from gradscale.backward.measurements import Measurements
from gradscale.backward.plan import ScalePlan
from gradscale.formats import FloatFormat
from gradscale.plans.decision import Decision, Group, Loss
from gradscale.plans.groups import connected_groups, members
from gradscale.plans.situation import Situation
from gradscale.plans.tail import NO_TAIL, Tail, room_left
from gradscale.plans.window import FAR, Window
from gradscale.plans.windows_anchor import anchored, loss_exponent
from gradscale.plans.windows_nodes import node_windows
from gradscale.plans.windows_overflow import lowered, overflow_in
from gradscale.plans.windows_partition import Interval, partition
from gradscale.policies.setting_checks import check, check_count, check_format, check_number


@dataclass(frozen=True)
class Windows:
    """Gives each node an exponent from its window; neighbours share one while they can.

        overflow      the groups in which it began, and those that received what was infinite, go
                      down by `backoff`, or into their windows of before, if those are lower; the
                      others stay. A graph that has no windows yet goes down as a whole, by twice as
                      much each time
        next measured what it does not explain is taken for a heavy step: windows keep free how far
                      that went beyond all that was measured, and forget it slowly
        all in place  keep the plan
        otherwise     the groups with a node outside its window are formed anew, the others stay,
                      unless forming all anew takes fewer groups

    A new group takes the highest exponent that all its windows share, or one in use a few octaves
    below. The loss scale becomes the exponent that spares most edges to leaves a multiplication.

    Args:
        flushed: the share of a tensor's non-zero elements that may be lost.
        headroom: octaves between the largest gradient and overflow, at least 1; fewer are kept
            where both ends of a window press.
        backoff: octaves by which a group goes down when it overflows first, at least 1.
        product_format: the format in which matrix products read their gradient if the tensor that
            carries it is wider, as under `gradscale.emulation`; a name such as ``"e5m2"``.
        result_format: the format to which they round what they make of it, likewise.

    Raises:
        TypeError: if a setting is of another kind.
        ValueError: if it lies outside its range, or is no format.

    Example:
        >>> Windows(flushed=0.01)
        Windows(flushed=0.01, headroom=4, backoff=2, product_format=None, result_format=None)
    """

    flushed: float = 1e-3
    headroom: int = 4
    backoff: int = 2
    product_format: FloatFormat | str | None = None
    result_format: FloatFormat | str | None = None

    def __post_init__(self) -> None:
        check_number(self, "flushed")
        rule = "must lie in [0, 1): it is a share of elements"
        check(self, "flushed", 0 <= self.flushed < 1, rule, "To lose none, pass 0.")
        for name in ("headroom", "backoff"):
            check_count(self, name, 1, "It is a number of octaves.")
        for name in ("product_format", "result_format"):
            if getattr(self, name) is not None:
                check_format(self, name)

    @property
    def moments(self) -> bool:
        """Counts are enough."""
        return False

    @property
    def sampled(self) -> bool:
        """Whether a sample of a large tensor tells the share that may be lost."""
        return self.flushed >= FINEST_SHARE

    @property
    def products(self) -> bool:
        """Whether products work in narrower formats than the dtypes that carry their gradients."""
        return self.product_format is not None or self.result_format is not None

    def decide(self, situation: Situation) -> Decision:
        """See the class.

        Bad data overflows too: do not ask after a step that was lost to it.
        """
        graph, current = situation.graph, situation.current
        if situation.measurements.overflowed:
            return self._overflowed(situation)
        tail = self._learned(situation)
        windows = self.windows(graph, situation.measurements, tail)
        plan, scale = current, situation.log2_scale
        if not _in_place(windows, current, scale):
            plan, scale = _replanned(situation, windows, self.headroom)
        decision = situation.decision(plan, scale, _described(graph, windows, plan, scale))
        notes = (*_notes(graph, windows, scale), *_told(tail))
        return replace(decision, losses=_losses(windows), tail=tail, notes=notes)

    def _overflowed(self, situation: Situation) -> Decision:
        """The decision after a measurement in which something overflowed."""
        graph = situation.graph
        origins, behind = overflow_in(graph, situation.measurements)
        known, plan, log2_scale = situation.known, situation.current, situation.log2_scale
        if known is None and plan.is_uniform:
            # Never seen whole: it may have begun at a scale made for another graph, any number of
            # octaves too high. Twice as far each time comes down in a logarithm of them, and all
            # of it does, or each node would overflow in its turn.
            scale = log2_scale - (self.backoff << min(situation.overflows, _MOST_DOUBLINGS))
        else:
            windows = () if known is None else self.windows(graph, known, situation.tail)
            plan, scale = lowered(
                graph, plan, log2_scale, (*origins, *behind), self.backoff, windows
            )
        return situation.decision(plan, scale, connected_groups(graph, plan, scale), origins)

    def windows(
        self, graph: BackwardGraph, measurements: Measurements, tail: Tail = NO_TAIL
    ) -> list[Window]:
        """The window of every node."""
        return self._windows(graph, measurements, self.flushed, self.headroom, tail)

    def _learned(self, situation: Situation) -> Tail:
        """The tail, with the step that was lost since the last measurement."""
        if situation.lost is None:
            return situation.tail
        # Whatever these lose, an octave is kept: that is where windows that lose all of it end.
        loosest = self._windows(situation.graph, situation.measurements, 1.0, 1, NO_TAIL)
        tops = {node: w.hi + 1 for node, w in enumerate(loosest) if not w.free}
        return situation.tail.after(room_left(situation.graph, situation.lost, tops))

    def _windows(
        self,
        graph: BackwardGraph,
        measurements: Measurements,
        flushed: float,
        headroom: int,
        tail: Tail,
    ) -> list[Window]:
        narrow, made = self.product_format, self.result_format
        return node_windows(
            graph,
            measurements,
            flushed=flushed,
            headroom=headroom,
            product_format=None if narrow is None else FloatFormat.of(narrow),
            result_format=None if made is None else FloatFormat.of(made),
            tail=tail,
        )


_MOST_DOUBLINGS = 5
"""Times 2 octaves that is 64: as far as windows reach."""


def _in_place(windows: Sequence[Window], plan: ScalePlan, log2_scale: int) -> bool:
    exponents = plan.exponents
    return all(w.lo <= k + log2_scale <= w.limit for w, k in zip(windows, exponents, strict=True))


def _replanned(
    situation: Situation, windows: Sequence[Window], slack: int
) -> tuple[ScalePlan, int]:
    graph, current, log2_scale = situation.graph, situation.current, situation.log2_scale
    fixed = graph.fixed
    free = [node for node in range(len(graph)) if node not in fixed]
    intervals = {node: (windows[node].lo, windows[node].hi) for node in free}
    fresh = _groups(graph, free, intervals, {})
    kept = _kept_groups(graph, windows, current, log2_scale)
    if kept:
        for nodes in kept.values():
            exponent = current.exponents[nodes[0]] + log2_scale
            intervals.update((node, (exponent, exponent)) for node in nodes)
        anew = _groups(graph, free, intervals, kept)
        chosen = anew if len(anew) <= len(fresh) else fresh
    else:
        chosen = fresh
    if chosen is fresh:
        intervals.update((node, (windows[node].lo, windows[node].hi)) for node in free)
    exponents = anchored(chosen, intervals, slack)
    scale = loss_exponent(graph, windows, exponents, log2_scale)
    return situation.plan_of(exponents, scale), scale


def _kept_groups(
    graph: BackwardGraph, windows: Sequence[Window], current: ScalePlan, log2_scale: int
) -> dict[int, list[int]]:
    """The groups of the current plan all of whose nodes are within their windows."""
    return {
        group: nodes
        for group, nodes in members(graph, current).items()
        if all(
            windows[node].lo <= current.exponents[node] + log2_scale <= windows[node].limit
            for node in nodes
        )
    }


def _groups(
    graph: BackwardGraph,
    free: Sequence[int],
    intervals: dict[int, Interval],
    kept: dict[int, list[int]],
) -> list[list[int]]:
    """The fewest groups of free nodes; those of a kept group stay together."""
    number: dict[int, int] = {}
    together = {node: nodes[0] for nodes in kept.values() for node in nodes}
    for node in free:
        number.setdefault(together.get(node, node), len(number))
    place = {node: number[together.get(node, node)] for node in free}
    pieces: list[Interval] = [(-FAR, FAR)] * len(number)
    for node in free:
        pieces[place[node]] = intervals[node]
    edges = {
        (place[edge.source], place[edge.target])
        for edge in graph.edges
        if edge.source in place and edge.target in place
    }
    groups = partition(pieces, sorted((a, b) for a, b in edges if a != b))
    formed: list[list[int]] = [[] for _ in range(max(groups, default=-1) + 1)]
    for node in free:
        formed[groups[place[node]]].append(node)
    return formed


def _described(
    graph: BackwardGraph, windows: Sequence[Window], plan: ScalePlan, log2_scale: int
) -> tuple[Group, ...]:
    groups: list[Group] = []
    for group in connected_groups(graph, plan, log2_scale):
        nodes = group.nodes
        low = max(nodes, key=lambda node: windows[node].lo)
        high = min(nodes, key=lambda node: windows[node].hi)
        groups.append(
            replace(
                group,
                needs=(low, windows[low].lo) if windows[low].lo > -FAR else None,
                allows=(high, windows[high].hi) if windows[high].hi < FAR else None,
            )
        )
    return tuple(groups)


def _losses(windows: Sequence[Window]) -> tuple[Loss, ...]:
    return tuple(
        Loss(node, window.hi, window.lost, window.extrapolated)
        for node, window in enumerate(windows)
        if window.lost > 0
    )


def _told(tail: Tail) -> Iterator[str]:
    """Why groups are lower than what was measured asks for."""
    if tail.reach:
        yield (
            f"after an overflow gradients are expected up to 2^{tail.reach} times as large as any "
            "that was measured: groups keep so much more room, where that does not flush more of "
            "their gradients than steps were lost"
        )


def _notes(graph: BackwardGraph, windows: Sequence[Window], log2_scale: int) -> tuple[str, ...]:
    """What the loss scale cannot give to all that sit at it."""
    leaves = graph.fixed.intersection(graph.leaves)
    low = [leaf for leaf in leaves if windows[leaf].lo > log2_scale]
    if not low:
        return ()
    needed = max(windows[leaf].lo for leaf in low)
    return (
        f"{len(low)} of {len(graph.leaves)} parameters hold their gradient in reduced precision "
        f"and lose part of it at 2^{log2_scale}: they need up to 2^{needed}. Keep the parameters "
        "in float32, as autocast does, or give them masters with `gradscale.half_precision`.",
    )
