"""When a scaler measures: by the calendar, and by what measuring costs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gradscale.backward.graph import BackwardGraph
from gradscale.backward.measurements import Counts, Measurements, PlaceRecord
from gradscale.entries import Entries
from gradscale.layerwise import Layerwise
from gradscale.layerwise.calendar import Calendar
from gradscale.layerwise.measuring_cost import MOST, MeasuredGraph, cost_in_steps
from gradscale.layerwise.saved_plans import read_plans
from gradscale.layerwise.timing import Timing
from gradscale.layerwise.track import Track
from gradscale.scaler import GradScaler


class Recurrence(nn.Module):
    """Many nodes, two elements each: measuring costs several steps."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, steps: int = 30) -> Tensor:
        factor = self.weight.half()
        state = factor * 1.0
        for _ in range(steps):
            state = state * factor
        return state.float().sum()


def training(scaler: GradScaler, model: nn.Module, steps: int) -> list[int]:
    """Trains, and says which steps measured."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    measured: list[int] = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = scaler.scale(model())
        timing = scaler.layerwise.timing
        if timing.now:
            measured.append(timing.steps)
        loss.backward()
        scaler.step(optimizer)
        scaler.update()
    return measured


class Wide(nn.Module):
    """Few nodes, many elements each."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 1))

    def forward(self) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.layers(torch.ones(1024, 512)).float().mean()


@given(every=st.integers(1, 50), cost=st.integers(1, MOST), step=st.integers(0, 300))
def test_an_interval_that_was_asked_for_is_kept_whatever_measuring_costs(
    every: int, cost: int, step: int
) -> None:
    assert Calendar(every).costing(cost).due(step) == Calendar(every).due(step)


@given(cost=st.integers(1, MOST))
def test_the_default_interval_is_a_hundred_times_the_cost(cost: int) -> None:
    due = [step for step in range(3 * 100 * cost + 1) if Calendar().costing(cost).due(step)]
    assert due[-3:] == [100 * cost, 200 * cost, 300 * cost]
    assert due[:-3] == [0, *(2**k for k in range(11) if 2**k < 100 * cost)]


def test_a_recurrence_of_tiny_tensors_is_measured_less_often_than_a_wide_layer() -> None:
    tiny = GradScaler("cpu", init_scale=4.0, layerwise=True)
    training(tiny, Recurrence(), 3)
    assert tiny.layerwise.timing.calendar.cost > 2
    large = GradScaler("cpu", init_scale=4.0, layerwise=True)
    training(large, Wide(), 3)
    assert large.layerwise.timing.calendar.cost == 1


def test_a_resumed_run_measures_the_same_steps_as_one_that_went_on() -> None:
    torch.manual_seed(0)
    first = GradScaler("cpu", init_scale=4.0, layerwise=True)
    model = Recurrence()
    training(first, model, 66)
    state, weights = first.state_dict(), {k: v.clone() for k, v in model.state_dict().items()}
    assert state["gradscale"]["layerwise"]["cost"] == first.layerwise.timing.calendar.cost > 1
    went_on = training(first, model, 70)
    second, again = GradScaler("cpu", init_scale=4.0, layerwise=True), Recurrence()
    again.load_state_dict(weights)
    second.load_state_dict(state)
    assert training(second, again, 70) == went_on == [128]
    assert second.state_dict() == first.state_dict()


def measurements(places: int, elements: int) -> Measurements:
    counts = Counts(1.0, octaves=(elements,))
    records = [PlaceRecord(node, "arrived", -1, "fp16", 0, counts) for node in range(places)]
    return Measurements("a", tuple(records))


@given(
    nodes=st.integers(1, 50),
    places=st.integers(0, 200),
    elements=st.integers(0, 10**7),
    passes=st.integers(1, 4),
    ranks=st.integers(1, 4),
)
def test_the_cost_is_that_of_one_pass_on_one_rank(
    nodes: int, places: int, elements: int, passes: int, ranks: int
) -> None:
    one = cost_in_steps([MeasuredGraph(nodes, 1, measurements(places, elements))])
    merged = measurements(places, elements * passes * ranks)
    assert cost_in_steps([MeasuredGraph(nodes, passes, merged)], ranks) == one
    assert 1 <= one <= MOST


@pytest.mark.parametrize("every", [0, -1, 2.5, float("nan"), True, "often"])
def test_an_interval_is_a_whole_number(every: object) -> None:
    with pytest.raises(ValueError, match=r"must be a whole number of at least 1.*None leaves it"):
        Layerwise(measure_every=every)  # type: ignore[arg-type]


@given(every=st.integers(1, 200), step=st.integers(0, 1000))
def test_the_next_measuring_step_is_the_first_that_is_due(every: int, step: int) -> None:
    calendar = Calendar(every=every)
    assert calendar.next(step) == next(s for s in range(step, step + 500) if calendar.due(s))


@given(every=st.none() | st.integers(1, 200), cost=st.integers(1, MOST), since=st.integers(1, 500))
def test_after_an_overflow_measuring_costs_four_steps_or_one_measurement_more(
    every: int | None, cost: int, since: int
) -> None:
    calm = Calendar(every).costing(cost)
    calendar = calm.anew(since)
    assert calendar.due(since)
    more = [s for s in range(since + 500) if calendar.due(s) and not calm.due(s)]
    assert all(not calm.due(s) or calendar.due(s) for s in range(since + 500))
    assert set(more) <= {since, since + 1, since + 2, since + 4}
    assert (len(more) - 1) * cost <= 4
    for step in range(since + 5):
        assert calendar.next(step) == next(s for s in range(step, 10_000) if calendar.due(s))


def test_a_run_resumed_after_an_overflow_measures_the_same_steps() -> None:
    first = Timing(Calendar())
    first.steps = 40
    first.calendar = first.calendar.costing(2)
    first.follow()
    first.next_step()
    second = Timing(Calendar())
    second.resume(first.steps, first.now, first.calendar.cost, first.calendar.since)
    assert measured(first) == measured(second) == [41, 42, 64, 128]


def measured(timing: Timing) -> list[int]:
    """The next hundred steps that measure."""
    found: list[int] = []
    for _ in range(100):
        if timing.now:
            found.append(timing.steps)
        timing.next_step()
    return found


@given(every=st.none() | st.integers(1, 200), cost=st.integers(1, MOST), step=st.integers(0, 2000))
def test_a_slot_ends_where_a_calendar_that_was_never_begun_anew_measures(
    every: int | None, cost: int, step: int
) -> None:
    calendar = Calendar(every).costing(cost)
    begins = calendar.slot(step + 1) != calendar.slot(step)
    assert begins == calendar.due(step + 1) == (calendar.slot(step + 1) == calendar.slot(step) + 1)
    assert calendar.anew(step + 1).slot(step) == calendar.slot(step)


def test_what_was_measured_after_an_overflow_does_not_drive_out_what_was_large_before() -> None:
    graph = BackwardGraph.of((torch.ones(2, requires_grad=True) * 2).sum())

    def seen(amax: float) -> Measurements:
        record = PlaceRecord(0, "arrived", -1, "fp16", 0, Counts(amax, octaves=(2,)))
        return Measurements(graph.signature, (record,))

    track = Track(graph)
    for slot, amax in ((1, 8.0), (2, 1.0), (2, 4.0), (2, 2.0), (2, 2.0), (2, 2.0), (3, 1.0)):
        track.remember(seen(amax), slot)
    kept = [measured.records[0].counts.amax for measured in track.history]
    assert kept == [8.0, 4.0, 1.0]
    assert track.history[1].records[0].counts.octaves == (2,)
    saved = read_plans(Entries({**EMPTY, "tracks": {graph.signature: track.state_dict()}}))
    again = Track.restored(graph, saved.tracks[graph.signature])
    again.remember(seen(2.0), 3)
    assert [m.records[0].counts.amax for m in again.history] == [8.0, 4.0, 2.0]


EMPTY = {"steps": 3, "again": False, "hiding": False, "lowered": None}
