"""What `measure` counts in real backward passes, with and without a plan."""

import gc
import math
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from gradscale.backward.graph import walk
from gradscale.backward.measure import measure
from gradscale.backward.measure_places import places_of
from gradscale.backward.measurements import Counts, Measurements, PlaceRecord
from gradscale.backward.plan import ScalePlan
from gradscale.backward.rescale import rescale
from gradscale.entries import Entries
from gradscale.layerwise.saved_plans import read_measurements


class Token:
    """Lives as long as the node that holds it; nodes themselves take no weak references."""


def half_loss(seed: int = 0, scale: float = 1.0) -> tuple[Tensor, nn.Module]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).half()
    out = model(torch.randn(5, 6).half())
    return out.float().square().mean() * scale, model


def of_kind(measurements: Measurements, kind: str) -> list[PlaceRecord]:
    return [record for record in measurements.records if record.kind == kind]


def test_arrivals_and_products_are_those_of_the_backward_pass() -> None:
    loss, _ = half_loss()
    walked = walk(loss)
    seen: dict[int, Tensor] = {}
    for index, node in enumerate(walked.nodes):
        if index not in walked.graph.leaves:
            node.register_hook(lambda made, got, index=index: seen.__setitem__(index, got[0]))
    measuring = measure(walked, scale=1024.0)
    (loss * 1024).backward()
    measurements = measuring.result()
    assert {record.format for record in of_kind(measurements, "arrived")} == {"fp16", "fp32"}
    for record in of_kind(measurements, "arrived"):
        expected = seen[record.node].double().abs().max().item() / 1024
        assert record.counts.amax == expected
        assert record.counts.numel == seen[record.node].numel()
        assert record.exponent == 10
    leaves = {record.target for record in of_kind(measurements, "produced")}
    assert set(walked.graph.leaves) <= leaves
    parameters = walked.graph.parameters()
    for record in of_kind(measurements, "produced"):
        if record.target in parameters:
            grad = parameters[record.target].grad  # type: ignore[union-attr]
            assert record.counts.amax == grad.double().abs().max().item() / 1024


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_unscaled_counts_do_not_depend_on_the_plan(seed: int) -> None:
    plain_loss, _ = half_loss(0, 64.0)
    plain = measure(walk(plain_loss), scale=64.0)
    plain_loss.backward()
    loss, _ = half_loss(0, 64.0)
    walked = walk(loss)
    generator = torch.Generator().manual_seed(seed)
    plan = ScalePlan.random(walked.graph, generator, -2, 3)
    planned = measure(walked, plan.exponents, 64.0)
    rescale(walked, plan)
    loss.backward()
    expected = {record.place: record.counts for record in plain.result().records}
    result = planned.result()
    assert {p for p, _ in ((r.place, 0) for r in result.records)} >= expected.keys()
    for record in result.records:
        if record.place in expected:
            # Subnormal rounding moves by the plan, so compare what has full precision in both.
            assert record.counts.amax == pytest.approx(expected[record.place].amax, rel=2e-3)


def test_a_cast_is_counted_before_it_loses_anything() -> None:
    x = torch.ones(4, dtype=torch.float16, requires_grad=True)
    loss = (x.float() * torch.tensor([1e-12, 1e-3, 1e6, 1.0])).sum()
    measuring = measure(walk(loss))
    loss.backward()
    records = measuring.result().records
    (cast,) = [r for r in records if r.kind == "arrived" and r.counts.nonfinite == 0]
    assert cast.format == "fp32" and cast.counts.nonzero == 4
    produced = [r for r in records if r.kind == "produced"]
    assert [r.counts.nonfinite for r in produced] == [1] and measuring.result().overflowed


def test_float32_graphs_have_nothing_to_count() -> None:
    loss = nn.Linear(3, 2)(torch.randn(4, 3)).sum()
    graph = walk(loss).graph
    assert places_of(graph, [0] * len(graph)) == []
    assert measure(walk(loss)).result() == Measurements(graph.signature)


def test_moments_come_with_the_weights_and_the_true_fan() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, groups=2), nn.Flatten(), nn.Linear(8, 5))
    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    measuring = measure(walk(model(x).square().sum()), moments=True)
    records = measuring.result().records
    weights = [record for record in records if record.kind == "weight"]
    assert sorted(record.fan for record in weights) == [5, 16]
    for record in weights:
        weight = model[2].weight if record.fan == 5 else model[0].weight  # type: ignore[union-attr]
        assert record.counts.amax == weight.abs().max().item()
        assert record.counts.moments is not None
        assert record.counts.moments[1] == pytest.approx(weight.double().square().sum().item())


def test_reading_weights_never_runs_a_saved_tensor_hook() -> None:
    calls: list[int] = []
    layer = nn.Linear(4, 4)
    x = torch.randn(2, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: calls.append(1) or t):
        loss = layer(x).sum()
    assert [
        r for r in measure(walk(loss), moments=True).result().records if r.kind == "weight"
    ] == []
    again = checkpoint(lambda x: calls.append(1) or layer(x).relu(), x, use_reentrant=False).sum()
    before = len(calls)
    measure(walk(again), moments=True)
    assert len(calls) == before == 1


def test_micro_batches_are_counted_as_one() -> None:
    parts = []
    for seed in (0, 1):
        loss, _ = half_loss(seed)
        measuring = measure(walk(loss))
        loss.backward()
        parts.append(measuring.result())
    both = parts[0].merged(parts[1:])
    for one, other, sum_ in zip(*(p.records for p in (*parts, both)), strict=True):
        assert sum_.counts.numel == one.counts.numel + other.counts.numel
        assert sum_.counts.amax == max(one.counts.amax, other.counts.amax)


def test_a_retained_graph_adds_its_second_pass_to_the_first() -> None:
    loss, _ = half_loss()
    measuring = measure(walk(loss))
    loss.backward(retain_graph=True)
    loss.backward()
    twice = measuring.result()
    loss, _ = half_loss()
    once = measure(walk(loss))
    loss.backward()
    for one, two in zip(once.result().records, twice.records, strict=True):
        assert (two.counts.numel, two.counts.amax) == (2 * one.counts.numel, one.counts.amax)


def test_nothing_of_the_graph_outlives_the_backward_pass() -> None:
    loss, model = half_loss()
    walked = walk(loss)
    token = Token()
    node = weakref.ref(token)
    walked.nodes[0].metadata["token"] = token
    del token
    measuring = measure(walked)
    loss.backward()
    del walked, loss, model
    gc.collect()
    assert node() is None and len(measuring.result().records) > 0


def test_measurements_of_different_graphs_do_not_mix() -> None:
    with pytest.raises(ValueError, match="Keep one history for each signature"):
        Measurements("a").merged([Measurements("b")])


counts = st.builds(
    Counts,
    amax=st.floats(0, 10),
    zero=st.integers(0, 9),
    nonfinite=st.integers(0, 2),
    lowest=st.integers(-30, 3),
    octaves=st.lists(st.integers(1, 9), max_size=5).map(tuple),
    moments=st.none() | st.tuples(*[st.floats(-5, 5)] * 4),
)


@given(one=counts, other=counts)
@settings(deadline=None)
def test_added_counts_lose_no_element(one: Counts, other: Counts) -> None:
    total = one + other
    assert total.numel == one.numel + other.numel
    for octave in range(-40, 20):
        at = lambda c: dict(enumerate(c.octaves, c.lowest)).get(octave, 0)  # noqa: B023, E731
        assert at(total) == at(one) + at(other)


@given(one=counts, node=st.integers(0, 5))
@settings(deadline=None)
def test_measurements_survive_a_checkpoint(one: Counts, node: int) -> None:
    before = Measurements("s", (PlaceRecord(node, "produced", 7, "fp16", -3, one, 2),))
    assert read_measurements(Entries(before.as_dict()), "s") == before


def test_a_scale_that_is_no_power_of_two_overstates_nothing() -> None:
    x = torch.tensor([1.0], dtype=torch.float16, requires_grad=True)
    loss = (x * 3).float().sum()
    measuring = measure(walk(loss), scale=torch.tensor(3.0))
    (loss * 3).backward()
    for record in measuring.result().records:
        assert math.ldexp(1.0, record.counts.lowest) <= record.counts.amax
    assert measuring.ready


def test_a_measured_backward_pass_never_reads_a_tensor_on_the_host() -> None:
    with FakeTensorMode():
        model = nn.Sequential(nn.Linear(4, 8, dtype=torch.half), nn.ReLU())
        loss = model(torch.randn(3, 4, dtype=torch.half)).float().sum()
        measuring = measure(walk(loss), None, torch.tensor(4.0), moments=True)
        (loss * 4).backward()
        measuring.fetch()
        assert measuring.ready
