"""Which records limit which nodes."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from gradscale.backward.graph import BackwardGraph
from gradscale.backward.measurements import Counts, Kind, Measurements, PlaceRecord
from gradscale.emulation import emulate
from gradscale.formats import FloatFormat
from gradscale.plans.tail import NO_TAIL, Tail
from gradscale.plans.window import (
    FAR,
    Window,
    highest_exponent,
    intersection,
    window_of,
    with_flushed,
)
from gradscale.plans.windows_nodes import node_windows

HALF = FloatFormat.of("fp16")


def graph_of(dtype: torch.dtype = torch.float16) -> BackwardGraph:
    """0 sum, 1 sin, 2 sin, 3 leaf."""
    return BackwardGraph.of(torch.ones(2, dtype=dtype, requires_grad=True).sin().sin().sum())


def record(
    node: int, octave: int, kind: Kind = "arrived", target: int = -1, stored: int = 0
) -> PlaceRecord:
    counts = Counts(2.0**octave, 0, 0, octave, (10,))
    return PlaceRecord(node, kind, target, "fp16", stored, counts)


def windows(graph: BackwardGraph, *records: PlaceRecord) -> list[Window]:
    measurements = Measurements(graph.signature, records)
    return node_windows(graph, measurements, flushed=0.0, headroom=4)


def window(octave: int) -> Window:
    return window_of(Counts(2.0**octave, 0, 0, octave, (10,)), HALF, flushed=0.0)


def test_the_headroom_is_kept_to_the_octave() -> None:
    assert window(0).hi == highest_exponent(1.0, HALF) - 4 == 11
    assert window(0).limit == 13 and window(0).lo == -25


def test_a_node_is_limited_by_what_arrives_and_by_what_it_produces() -> None:
    graph = graph_of()
    found = windows(graph, record(1, -10))
    assert found[1] == window(-10)
    assert found[0] == window(-10)  # what arrives at 1 was produced by 0, at 0's exponent
    assert found[2] == Window() and found[3] == Window()


def test_a_leaf_is_limited_by_the_gradient_that_it_stores() -> None:
    graph = graph_of()
    found = windows(graph, record(2, 3, "produced", 3))
    assert found[3] == found[2] == window(3)


def test_float32_has_no_window() -> None:
    graph = graph_of(torch.float32)
    assert windows(graph, record(1, -10)) == [Window()] * 4


def test_a_product_is_preferred_to_what_then_arrived() -> None:
    graph = graph_of()
    found = windows(graph, record(0, -5, "produced", 1), record(1, -8))
    assert found[0] == window(-5) and found[1] == window(-8)


def test_a_join_keeps_room_for_the_sum_of_its_terms() -> None:
    y = torch.ones(2, dtype=torch.float16, requires_grad=True).sin()
    graph = BackwardGraph.of(torch.stack([y.cos() for _ in range(16)]).sum())
    (join,) = [n for n in range(len(graph)) if len(graph.edges_into(n)) == 16]
    sources = [graph.edges[number].source for number in graph.edges_into(join)]
    found = windows(graph, *(record(source, 0, "produced", join) for source in sources))
    assert found[join].hi == highest_exponent(1.0, HALF) - 4 - 1


def test_a_product_that_may_have_been_flushed_whole_raises_its_node() -> None:
    graph = graph_of()
    nothing = PlaceRecord(1, "produced", 2, "fp16", 0, Counts(0.0, 10))
    low = windows(graph, record(1, -22), nothing)
    assert low[1].lo == 12 and low[1].extrapolated
    high = windows(graph, record(1, -2), nothing)
    assert high[1].lo == window(-2).lo


@pytest.mark.parametrize("attention", [False, True])
def test_products_may_read_a_narrower_format_than_carries_the_gradient(attention: bool) -> None:
    x, w = torch.ones(2, 2), torch.ones(2, 2, requires_grad=True)
    if attention:
        with emulate(forward="fp16", backward="e4m3"):
            out = scaled_dot_product_attention(w[None], x[None], x[None])
        name = "EmulatedAttentionBackward"
    else:
        out, name = x @ w, "MmBackward0"
    graph = BackwardGraph.of(out.sum())
    node = graph.names.index(name)
    measurements = Measurements(graph.signature, (record(node, 0),))
    narrow = FloatFormat.of("e4m3")
    found = node_windows(graph, measurements, flushed=0.0, headroom=4, product_format=narrow)
    assert found[node].hi == highest_exponent(1.0, narrow) - 4 < FAR


@pytest.mark.parametrize("reach", [1, 5, 16, 17, 27, 60])
def test_heavy_steps_take_no_room_that_another_window_of_the_node_needs(reach: int) -> None:
    graph = graph_of()
    records = (record(1, 0), record(1, -20, "produced", 2))
    measurements, tail = Measurements(graph.signature, records), Tail(reach, 2)
    found = node_windows(graph, measurements, flushed=0.0, headroom=4, tail=tail)[1]
    lo = window(-20).lo
    assert (found.lo, found.hi) == (lo, max(lo, window(0).hi - reach))
    assert found.hi <= found.limit <= window(0).limit


def zeros(node: int) -> PlaceRecord:
    return PlaceRecord(node, "arrived", -1, "fp16", 0, Counts(0.0, 10))


def test_nodes_that_received_nothing_need_what_the_node_before_them_needs() -> None:
    graph = graph_of()
    found = windows(graph, record(0, -30, "produced", 1), zeros(1), zeros(2))
    assert [w.lo for w in found[:3]] == [window(-30).lo] * 3
    assert found[1].extrapolated and found[2].extrapolated
    assert found[3] == Window()  # a leaf stays at the loss scale


def test_what_was_seen_ends_it() -> None:
    graph = graph_of()
    found = windows(graph, record(0, -30, "produced", 1), zeros(1), record(2, -5))
    assert found[1].lo == window(-30).lo and found[2] == window(-5)


def test_zeros_behind_a_node_without_a_limit_are_free() -> None:
    graph = graph_of()
    assert windows(graph, zeros(1), zeros(2)) == [Window()] * 4


def slow_windows(graph: BackwardGraph, measurements: Measurements, tail: Tail) -> list[Window]:
    """A chain's windows: every place counted and limited anew, once for each tail."""
    arrived = {r.node: r for r in measurements.records if r.kind == "arrived"}
    produced = {r.node: r for r in measurements.records if r.kind == "produced"}

    def limits(node: int, tail: Tail) -> list[Window]:
        found: list[Window] = []
        below = produced.get(node, arrived.get(node + 1))
        above = produced.get(node - 1, arrived.get(node)) if node == len(graph) - 1 else None
        for place in (arrived.get(node), below if node < len(graph) - 1 else above):
            if place is not None:
                counts = with_flushed(place.counts, HALF, place.exponent)
                w = window_of(counts, HALF, flushed=0.01, headroom=4, tail=tail)
                guessed = counts is not place.counts
                found.append(replace(w, extrapolated=True) if guessed else w)
        return found

    windows: list[Window] = []
    for node in range(len(graph)):
        whole, low = limits(node, NO_TAIL), limits(node, tail)
        one, other = intersection(whole), intersection(low)
        if tail.reach:
            least = max((w.lo for w in whole if not w.lost), default=-FAR)
            hi = min(one.hi, max(other.hi, least))
            lo = min(hi, max((w.lo for w in low), default=-FAR))
            one = replace(other, lo=lo, hi=hi, limit=min(one.limit, max(other.limit, hi)))
        windows.append(one)
    return windows


some_octaves = st.lists(st.integers(0, 1000), min_size=1, max_size=30).filter(lambda o: o[-1] > 0)


@given(data=st.data(), reach=st.integers(0, 30), times=st.integers(1, 20))
def test_windows_with_and_without_a_reach_are_those_of_the_slow_walk(
    data: st.DataObject, reach: int, times: int
) -> None:
    graph = graph_of()
    records: list[PlaceRecord] = []
    for node, kind, target in [(0, "produced", 1), (1, "arrived", -1), (2, "arrived", -1)]:
        if data.draw(st.booleans()):
            octaves = tuple(data.draw(some_octaves))
            lowest = data.draw(st.integers(-40, 0))
            amax = 1.5 * 2.0 ** (lowest + len(octaves) - 1)
            counts = Counts(amax, data.draw(st.integers(0, 50)), 0, lowest, octaves)
            stored = data.draw(st.integers(12, 20))
            records.append(PlaceRecord(node, kind, target, "fp16", stored, counts))  # type: ignore[arg-type]
    measurements, tail = Measurements(graph.signature, tuple(records)), Tail(reach, times)
    found = node_windows(graph, measurements, flushed=0.01, headroom=4, tail=tail)
    assert found == slow_windows(graph, measurements, tail)
