"""What an overflow has taught, in windows and in what `Windows` decides."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscale.backward.graph import BackwardGraph
from gradscale.backward.measurements import Counts, Measurements, PlaceRecord
from gradscale.backward.plan import ScalePlan
from gradscale.formats import FloatFormat
from gradscale.plans.decision_report import structure_report
from gradscale.plans.excluding import Excluding
from gradscale.plans.situation import Situation
from gradscale.plans.tail import NO_TAIL, LostStep, Tail, room_left
from gradscale.plans.window import (
    FAR,
    flushed_share,
    highest_exponent,
    lowest_exponent,
    window_of,
)
from gradscale.plans.windows import Windows

some_counts = st.builds(
    lambda lowest, octaves, size: Counts(
        2.0 ** (lowest + len(octaves) - 1) * size, lowest=lowest, octaves=tuple(octaves)
    ),
    st.integers(-40, 20),
    st.lists(st.integers(0, 500), min_size=1, max_size=45).filter(lambda it: it[-1] > 0),
    st.floats(1.0, 1.99),
)
formats = st.sampled_from(["fp16", "e5m2", "e4m3"]).map(FloatFormat.of)
tails = st.builds(Tail, st.integers(1, 20), st.integers(0, 200), st.just(1000))


@given(counts=some_counts, format=formats, tail=tails, headroom=st.integers(1, 6))
def test_room_is_kept_until_it_would_cost_more_than_it_may(
    counts: Counts, format: FloatFormat, tail: Tail, headroom: int
) -> None:
    without = window_of(counts, format, headroom=headroom)
    window = window_of(counts, format, headroom=headroom, tail=tail)
    assert window.hi <= without.hi and window.lo <= window.hi <= window.limit <= without.limit
    wanted = highest_exponent(counts.amax, format) - tail.reach - headroom
    lost = flushed_share(counts, format, without.hi)
    bearable = lost + tail.share if without.lost else 1e-3
    if max(-FAR, min(wanted, FAR)) == window.hi:
        return  # all the room that a heavy step takes
    assert window.hi > wanted
    assert flushed_share(counts, format, window.hi) <= bearable
    assert flushed_share(counts, format, window.hi - 1) > bearable
    assert window.lost == pytest.approx(
        0
        if flushed_share(counts, format, window.hi) <= 1e-3
        else flushed_share(counts, format, window.hi)
    )


@given(counts=some_counts, format=formats, tail=tails, more=st.integers(0, 500))
def test_the_more_steps_were_lost_the_lower_a_window_may_go(
    counts: Counts, format: FloatFormat, tail: Tail, more: float
) -> None:
    further = tail._replace(times=tail.times + more)
    assert window_of(counts, format, tail=further).hi <= window_of(counts, format, tail=tail).hi


@given(counts=some_counts, reach=st.integers(1, 12))
def test_a_step_as_heavy_as_the_reach_stays_finite_where_no_small_gradient_presses(
    counts: Counts, reach: int
) -> None:
    format = FloatFormat.of("fp16")
    window = window_of(counts, format, tail=Tail(reach, 1))
    top = highest_exponent(counts.amax, format)
    if lowest_exponent(counts, format, 1e-3) > top - reach - 4:
        return
    heaviest = counts.amax * 2.0 ** (window.limit + reach)
    assert heaviest * 2 < format.overflow_threshold


def chain() -> BackwardGraph:
    x = torch.ones(2, dtype=torch.float16, requires_grad=True)
    return BackwardGraph.of(x.sin().sin().sin().sum())


def measured(graph: BackwardGraph, octaves: int = 1) -> Measurements:
    """Everything that arrives lies in the octaves from 2^-10 down."""
    counts = Counts(2.0**-10, lowest=-9 - octaves, octaves=(100,) * octaves)
    records = (PlaceRecord(n, "arrived", -1, "fp16", 16, counts) for n in range(4))
    return Measurements(graph.signature, tuple(records))


def situation(tail: Tail = NO_TAIL, octaves: int = 1) -> Situation:
    graph = chain()
    return Situation(graph, measured(graph, octaves), ScalePlan.uniform(graph), 21, tail=tail)


def test_a_group_in_place_goes_down_by_the_reach_and_the_report_says_why() -> None:
    before = Windows().decide(situation())
    assert before.scales == (21,) and not before.notes
    after = Windows().decide(situation(Tail(5, 1)))
    assert after.scales == (16,) and after.changed
    text = str(structure_report(after, chain()))
    assert "gradients are expected up to 2^5 times as large as any that was measured" in text


def test_a_window_goes_down_as_far_as_nothing_is_lost() -> None:
    # 36 of float16's 41 octaves: there is headroom, and an octave more.
    lowest = Windows().decide(situation(NO_TAIL, octaves=36)).scales[0]
    assert Windows().decide(situation(Tail(9, 6), octaves=36)).scales[0] == lowest - 1


def test_a_window_wider_than_the_format_goes_down_only_as_far_as_steps_were_lost() -> None:
    lowest = Windows().decide(situation(NO_TAIL, octaves=45)).scales[0]
    # Of 45 octaves two are less than 6%.
    assert Windows().decide(situation(Tail(9, 6), octaves=45)).scales[0] == lowest - 2


TOP = highest_exponent(2.0**-10, FloatFormat.of("fp16"))


@given(exponent=st.integers(-10, 60), reach=st.integers(0, 20), kind=st.integers(0, 2))
@settings(deadline=None)
def test_only_what_a_measurement_does_not_explain_is_learned(
    exponent: int, reach: int, kind: int
) -> None:
    known = Tail(reach, 2, 1000)
    asked = situation(known)
    lost = LostStep((exponent,) * len(asked.graph))
    lost = (lost, lost._replace(origins=(1,)), lost._replace(leaves=asked.graph.leaves))[kind]
    decision = Windows().decide(replace(asked, lost=lost))
    if exponent > TOP:  # what was measured overflows there
        assert decision.tail == known
    else:
        room = TOP - exponent
        more = 4 if room >= reach else 1  # twice as much each time, where the reach was kept free
        assert decision.tail == Tail(min(63, max(reach, room) + more), 3, 1000)


def test_nothing_is_learned_of_a_node_where_nothing_but_zeros_was_measured() -> None:
    graph = chain()
    records = (PlaceRecord(n, "arrived", -1, "fp16", 16, Counts(zero=9)) for n in range(4))
    lost = LostStep((5,) * len(graph), origins=(1,))
    nothing = Measurements(graph.signature, tuple(records))
    asked = Situation(graph, nothing, ScalePlan.uniform(graph), 5, lost=lost)
    assert Windows().decide(asked).tail == NO_TAIL


def _spared(graph: BackwardGraph, node: int, bad: set[int]) -> bool:
    if node in graph.leaves:
        return node not in bad
    below = (graph.edges[number].target for number in graph.edges_from(node))
    return any(_spared(graph, target, bad) for target in below)


def _behind(graph: BackwardGraph, node: int, bad: set[int]) -> set[int]:
    """Who may have spoilt it: what leads to a finite leaf may have made, but not passed on, it."""
    if _spared(graph, node, bad):
        return {node}
    sources = {graph.edges[number].source for number in graph.edges_into(node)}
    return {node}.union(*(_behind(graph, source, bad) for source in sources))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_room_behind_spoilt_leaves_is_that_of_the_obvious_search(data: st.DataObject) -> None:
    a, b, c = (torch.ones(2, requires_grad=True) for _ in range(3))
    shared = (a.exp() + b).sin()
    graph = BackwardGraph.of((shared * c + shared.cos() * b.exp()).sum() + a.sum())
    bad = data.draw(st.sets(st.sampled_from(graph.leaves), min_size=1))
    nodes = st.integers(0, len(graph) - 1)
    tops = data.draw(st.dictionaries(nodes, st.integers(0, 9)))
    lost = LostStep((0,) * len(graph), leaves=tuple(sorted(bad)))
    least = [[tops[n] for n in _behind(graph, leaf, bad) if n in tops] for leaf in bad]
    expected = max((min(rooms) for rooms in least if rooms), default=None)
    assert room_left(graph, lost, tops) == expected


def test_a_planner_with_excluded_modules_passes_on_what_was_learned() -> None:
    asked = replace(situation(Tail(5, 1)), names={1: "first"})
    decision = Excluding(Windows(), ["first"]).decide(asked)
    assert decision.tail == Tail(5, 1) and decision.log2_scale == 16


@settings(max_examples=30, deadline=None)
@given(reach=st.integers(1, 8), times=st.integers(0, 10))
def test_a_plan_made_with_a_tail_is_kept_with_it(reach: int, times: int) -> None:
    asked = situation(Tail(reach, times), octaves=20)
    decision = Windows().decide(asked)
    again = replace(asked, current=decision.plan, log2_scale=decision.log2_scale)
    assert not Windows().decide(again).changed
