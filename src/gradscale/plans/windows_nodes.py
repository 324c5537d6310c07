"""The window of every node, from what was measured at it and behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from gradscale.backward.graph import BackwardGraph
from gradscale.backward.measure_places import format_name, is_reduced, multiplies
from gradscale.backward.measurements import Counts, Measurements, PlaceRecord
from gradscale.backward.topology import CAST, Edge
from gradscale.formats import FloatFormat
from gradscale.plans.tail import NO_TAIL, Tail
from gradscale.plans.window import (
    FAR,
    Window,
    flush_octave,
    intersection,
    sum_window,
    window_of,
    with_flushed,
)


def node_windows(
    graph: BackwardGraph,
    measurements: Measurements,
    *,
    flushed: float,
    headroom: int,
    product_format: FloatFormat | None = None,
    result_format: FloatFormat | None = None,
    tail: Tail = NO_TAIL,
) -> list[Window]:
    """One window for each node.

    A node computes its outputs at its own exponent, so its window holds for what arrives and for
    everything that it produces, the weight gradient included. A leaf's is that of the gradient it
    stores. Nodes that work in float32 get the whole range.

    Args:
        graph: the graph.
        measurements: of this graph.
        flushed: see `window_of`.
        headroom: see `window_of`.
        product_format: the format in which matrix products read their gradient, if that is
            narrower than the tensor that carries it.
        result_format: the format to which they round what they make, likewise.
        tail: see `window_of`; at a node, too, what lost nothing loses nothing to it.
    """
    finder = _Finder(graph, measurements, flushed, headroom, tail)
    limits = _limits(graph, finder, product_format, result_format)
    window = _reaching if tail.reach else _whole
    return _followed(graph, finder, [window(of_node) for of_node in limits])


class _Limit(NamedTuple):
    """A window as what was measured asks for it, and the same with room for heavy steps."""

    whole: Window
    low: Window


def _whole(limits: Sequence[_Limit]) -> Window:
    return intersection([limit.whole for limit in limits])


def _reaching(limits: Sequence[_Limit]) -> Window:
    """A node's window with room for heavy steps."""
    whole, low = _whole(limits), intersection([limit.low for limit in limits])
    # Each was lowered as far as it bears alone; here one stands beside others.
    least = max((limit.whole.lo for limit in limits if not limit.whole.lost), default=-FAR)
    hi = min(whole.hi, max(low.hi, least))
    lo = min(hi, max((limit.low.lo for limit in limits), default=-FAR))
    return replace(low, lo=lo, hi=hi, limit=min(whole.limit, max(low.limit, hi)))


def _limits(
    graph: BackwardGraph,
    finder: _Finder,
    product_format: FloatFormat | None,
    result_format: FloatFormat | None,
) -> list[list[_Limit]]:
    """For every node, all that limits it."""
    found: list[list[_Limit]] = [[] for _ in range(len(graph))]
    for node, record in finder.arrived.items():
        if any(is_reduced(arrival.dtype) for arrival in graph.arrives[node]):
            found[node].append(finder.limit(record, record.format))
        if product_format is not None and multiplies(graph.names[node]):
            found[node].append(finder.limit(record, product_format))
    structure = graph.structure
    for edge in structure.edges:
        dtype, record = structure.arrival(edge).dtype, finder.of_edge(edge)
        if dtype is None or record is None:
            continue
        source = found[edge.source]
        if not is_reduced(dtype):
            if result_format is not None and multiplies(graph.names[edge.source]):
                source.append(finder.limit(record, result_format, result_format))
            continue
        format = format_name(dtype)
        limit = finder.limit(record, format)
        source.append(limit)
        if not record.counts.octaves and finder.may_have_flushed(edge.source):
            raised = record.exponent + _UNSEEN_OCTAVES
            unseen = Window(lo=min(raised, FAR), extrapolated=True)
            source.append(_Limit(unseen, unseen))
        terms = len(structure.edges_into[edge.target])
        if terms > 1:
            room = sum_window(record.counts.amax, terms, _named(format))
            found[edge.target].append(_Limit(room, room))
        if finder.is_leaf(edge.target):
            found[edge.target].append(limit)
    return found


def _followed(graph: BackwardGraph, finder: _Finder, windows: Sequence[Window]) -> list[Window]:
    """Nodes at which nothing but zeros arrived need what the nodes before them need.

    Their gradient may have been flushed on its way, as behind a cast or between two exponents, and
    then it is seen only once they go up as well: all of them at once, up to where it joins others.
    """
    found, blind = list(windows), [False] * len(graph)
    fixed, edges = graph.fixed, graph.edges
    for node, into in enumerate(graph.structure.edges_into):  # in topological order
        if node in fixed or not into:
            continue
        sources = [edges[number].source for number in into]
        record = finder.arrived.get(node)
        # A node that nobody counts, as one in float32, received what the ones before it did.
        blind[node] = all(blind[s] for s in sources) if record is None else record.counts.amax == 0
        if blind[node]:
            lo = max(found[source].lo for source in sources)
            if lo > found[node].lo:
                found[node] = intersection((found[node], Window(lo=lo, extrapolated=True)))
    return found


_named = cache(FloatFormat.of)  # asked some times of every place
# A product of nothing but zeros, made from a gradient this close to the format's lower end, may
# have been flushed whole: its node goes up by so much at a time until something of it is seen.
_UNSEEN_OCTAVES = 12


class _Finder:
    """Looks records up, and remembers what each says."""

    def __init__(
        self,
        graph: BackwardGraph,
        measurements: Measurements,
        flushed: float,
        headroom: int,
        tail: Tail,
    ) -> None:
        self._names = graph.names
        self._leaves = set(graph.leaves)
        self._flushed = flushed
        self._headroom = headroom
        self._tail = tail
        # By `id` of a record, of which the measurements hold each.
        self._known: dict[tuple[int, str], _Limit] = {}
        self._whole: dict[int, Counts] = {}
        self.arrived: Mapping[int, PlaceRecord] = {
            record.node: record for record in measurements.records if record.kind == "arrived"
        }
        self._produced = {
            (record.node, record.target): record
            for record in measurements.records
            if record.kind == "produced"
        }

    def is_leaf(self, node: int) -> bool:
        return node in self._leaves

    def may_have_flushed(self, node: int) -> bool:
        """Whether what a node received was small enough for its products to vanish."""
        record = self.arrived.get(node)
        if record is None or not record.counts.octaves:
            return False
        top = record.counts.lowest + len(record.counts.octaves) + record.exponent
        return top <= flush_octave(_named(record.format)) + _UNSEEN_OCTAVES

    def of_edge(self, edge: Edge) -> PlaceRecord | None:
        """What says most of a product: a cast's is known before the cast lost anything."""
        if self._names[edge.source] == CAST and edge.source in self.arrived:
            return self.arrived[edge.source]
        produced = self._produced.get((edge.source, edge.target))
        return produced or self.arrived.get(edge.target)

    def limit(
        self,
        record: PlaceRecord,
        format: FloatFormat | str,
        stored: FloatFormat | None = None,
    ) -> _Limit:
        key = id(record), format if isinstance(format, str) else format.name
        if key not in self._known:
            counts = self._counts(record, stored or _named(record.format))
            format, guessed = _named(format), counts is not record.counts
            whole = self._window(counts, format, NO_TAIL, guessed)
            low = self._window(counts, format, self._tail, guessed) if self._tail.reach else whole
            self._known[key] = _Limit(whole, low)
        return self._known[key]

    def _window(self, counts: Counts, format: FloatFormat, tail: Tail, guessed: bool) -> Window:
        window = window_of(
            counts, format, flushed=self._flushed, headroom=self._headroom, tail=tail
        )
        return replace(window, extrapolated=True) if guessed else window

    def _counts(self, record: PlaceRecord, storage: FloatFormat) -> Counts:
        if id(record) not in self._whole:
            self._whole[id(record)] = with_flushed(record.counts, storage, record.exponent)
        return self._whole[id(record)]
