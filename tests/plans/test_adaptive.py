"""The planner Adaptive on backward graphs, each exponent derived by hand from the formulas."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradscale.backward.graph import BackwardGraph, walk
from gradscale.backward.measure import measure
from gradscale.backward.measurements import Counts, Measurements, PlaceRecord
from gradscale.backward.plan import ScalePlan
from gradscale.backward.rescale import rescale
from gradscale.exponents import floor_exponent
from gradscale.plans.adaptive import Adaptive
from gradscale.plans.adaptive_rules import Statistics, lognormal_bounds, product_bounds
from gradscale.plans.decision import Decision
from gradscale.plans.situation import Situation


def layers(count: int, size: float, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Products of float32 weights cast to `dtype`; the loss's gradient is about `size`."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 32, generator=generator).to(dtype)
    weights = [torch.randn(32, 32, generator=generator) * 0.05 for _ in range(count)]
    for weight in weights:
        x = x @ weight.requires_grad_().to(dtype)
    factor = torch.randn(16, 32, generator=generator).float() * size
    return (x.float() * factor).sum(), weights


def decided(
    planner: Adaptive, loss: Tensor, log2_scale: int = 0
) -> tuple[Decision, BackwardGraph, Measurements]:
    walked = walk(loss)
    measuring = measure(walked, None, 2.0**log2_scale, moments=True)
    (loss * 2.0**log2_scale).backward(retain_graph=True)
    measurements = measuring.result()
    plan = ScalePlan.uniform(walked.graph)
    return (
        planner.decide(Situation(walked.graph, measurements, plan, log2_scale)),
        walked.graph,
        measurements,
    )


def absolute(decision: Decision) -> list[int]:
    return [k + decision.log2_scale for k in decision.plan.exponents]


def only(graph: BackwardGraph, name: str) -> list[int]:
    return [node for node, found in enumerate(graph.names) if found == name]


@pytest.mark.parametrize("rule", ["product", "gradient", "output"])
def test_each_product_scales_by_its_rule_on_top_of_what_arrived(rule: str) -> None:
    planner = Adaptive(rule=rule, cast_rule="gradient")  # type: ignore[arg-type]
    decision, graph, measurements = decided(planner, layers(4, 1e-6, torch.float32)[0])
    exponents, arriving = absolute(decision), 0
    records = {record.place: record for record in measurements.records}
    products = only(graph, "MmBackward0")
    for node in products[:-1]:  # the first layer passes no gradient on
        gradient = Statistics.of(records[node, "arrived", -1].counts, arriving)
        weight = records[node, "weight", -1]
        bounds = planner.product(gradient, Statistics.of(weight.counts), weight.fan)
        assert weight.fan == 32
        if rule != "gradient":
            direct = product_bounds(
                gradient, Statistics.of(weight.counts), 32, 1e-3, summed=rule == "output"
            )
            assert bounds.low == direct.low
        arriving += floor_exponent(bounds.raw)
        assert exponents[node] == arriving
    assert arriving > 0 and exponents[products[-1]] == arriving
    assert decision.notes == ()


def test_a_cast_scales_before_it_rounds() -> None:
    decision, graph, found = decided(Adaptive(), layers(2, 1e-9, torch.float16)[0])
    (cast,) = [n for n in only(graph, "ToCopyBackward0") if n < only(graph, "MmBackward0")[0]]
    (counts,) = [r.counts for r in found.records if r.place == (cast, "arrived", -1)]
    expected = floor_exponent(lognormal_bounds(Statistics.of(counts), 1e-3).raw)
    assert absolute(decision)[cast] == expected >= 10 and absolute(decision)[cast - 1] == 0


@given(exponent=st.integers(-40, 10), bound=st.sampled_from([1.0, 16.0, 1024.0, 2.0**20]))
@settings(max_examples=20, deadline=None)
def test_caps_hold_for_each_factor_and_for_their_product(exponent: int, bound: float) -> None:
    planner = Adaptive(scale_upper_bound=16.0, accum_upper_bound=bound)
    decision, graph, _ = decided(planner, layers(4, 2.0**exponent, torch.float32)[0])
    exponents = absolute(decision)
    free = [exponents[n] for n in range(len(graph)) if n not in graph.leaves]
    assert 2.0 ** max(free) <= bound
    for edge in graph.edges:
        if edge.target not in graph.leaves:
            assert exponents[edge.target] - exponents[edge.source] <= 4


def test_what_is_added_has_one_exponent_at_which_the_sum_is_finite() -> None:
    x = torch.ones(4, dtype=torch.float16, requires_grad=True)
    y = x.sin()
    loss = (y * 60000.0 + y * 40000.0).float().sum()
    graph = BackwardGraph.of(loss)
    join = only(graph, "SinBackward0")[0]
    records = [
        PlaceRecord(graph.edges[n].source, "produced", join, "fp16", 0, Counts(m, 0, 0, 15, (4,)))
        for n, m in zip(graph.edges_into(join), (60000.0, 40000.0), strict=True)
    ]
    measurements = Measurements(graph.signature, tuple(records))
    decision = Adaptive().decide(Situation(graph, measurements, ScalePlan.uniform(graph), 0))
    assert absolute(decision)[join] == -1


def test_gradients_are_those_of_plain_training_within_rounding() -> None:
    loss, weights = layers(3, 1e-4, torch.float32)
    loss.backward(retain_graph=True)
    plain = [weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    decision, _, _ = decided(Adaptive(), loss)
    for weight in weights:
        weight.grad = None
    rescale(walk(loss), decision.plan)
    (loss * 2.0**decision.log2_scale).backward()
    for weight, grad in zip(weights, plain, strict=True):
        assert torch.equal(weight.grad, grad * 2.0**decision.log2_scale)  # type: ignore[operator]


def test_a_weight_that_cannot_be_read_is_named() -> None:
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        loss, _ = layers(2, 1e-6, torch.float32)
    decision, _, _ = decided(Adaptive(), loss)
    assert len(decision.notes) == 1 and "could not be read" in decision.notes[0]


def test_an_overflow_lowers_its_group_only() -> None:
    x = torch.ones(2, dtype=torch.float16, requires_grad=True)
    graph = BackwardGraph.of(x.sin().sin().sum())
    record = PlaceRecord(2, "arrived", -1, "fp16", 0, Counts(1.0, 0, 1, 0, (1,)))
    start = ScalePlan.of(graph, {2: 6})
    measurements = Measurements(graph.signature, (record,))
    decision = Adaptive(backoff=3).decide(Situation(graph, measurements, start, 4))
    assert decision.plan.exponents == (0, 0, 3, 0) and decision.overflowed == (2,)


def test_measurements_without_moments_are_refused() -> None:
    loss, _ = layers(2, 1e-6, torch.float16)
    walked = walk(loss)
    measuring = measure(walked)
    loss.backward()
    with pytest.raises(ValueError, match=r"Measure with `measure\(\.\.\., moments=True\)`"):
        Adaptive().decide(
            Situation(walked.graph, measuring.result(), ScalePlan.uniform(walked.graph), 0)
        )


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"rule": "sum"}, "'product', 'gradient' or 'output'"),
        ({"cast_rule": "sum"}, "'lognormal' or 'gradient'"),
        ({"threshold": 0.0}, "between 0 and 1"),
        ({"scale_upper_bound": 0.0}, "positive and finite"),
        ({"accum_upper_bound": float("inf")}, "Pass None for none"),
        ({"backoff": 0}, "at least 1 .*octaves"),
        ({"threshold": float("nan")}, "between 0 and 1"),
        ({"scale_upper_bound": float("nan")}, "positive and finite"),
    ],
)
def test_settings_out_of_range_are_refused(settings_: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Adaptive(**settings_)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["threshold", "scale_upper_bound", "accum_upper_bound", "backoff"])
@pytest.mark.parametrize("value", [True, "4"])
def test_settings_of_another_kind_are_refused(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=rf"`Adaptive\({name}=.*must be an? (number|int)"):
        Adaptive(**{name: value})  # type: ignore[arg-type]
