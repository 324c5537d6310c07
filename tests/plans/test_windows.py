"""The planner Windows on synthetic chains and on real backward passes."""

import time

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
from gradscale.formats import FloatFormat
from gradscale.plans.decision import Decision
from gradscale.plans.decision_report import structure_report
from gradscale.plans.excluding import Excluding
from gradscale.plans.groups import connected_groups
from gradscale.plans.planner import UserGiven, fixed
from gradscale.plans.situation import Situation
from gradscale.plans.window import flushed_share
from gradscale.plans.windows import Windows
from gradscale.plans.windows_overflow import lowered, overflow_in, suspects


def chain(length: int) -> BackwardGraph:
    """root -> … -> leaf through `length` half-precision sines, one group if nothing is known."""
    x = torch.ones(2, dtype=torch.float16, requires_grad=True)
    y = x
    for _ in range(length):
        y = y.sin()
    return BackwardGraph.of(y.sum())


def arrivals(graph: BackwardGraph, octaves: dict[int, int], nonfinite: int = 0) -> Measurements:
    """Measurements in which everything that arrives at a node lies in one octave."""
    return Measurements(
        graph.signature,
        tuple(
            PlaceRecord(node, "arrived", -1, "fp16", 0, Counts(2.0**o, 0, nonfinite, o, (100,)))
            for node, o in octaves.items()
        ),
    )


def decide(
    graph: BackwardGraph, measurements: Measurements, log2_scale: int = 16, **settings: object
) -> Decision:
    planner = Windows(**settings)  # type: ignore[arg-type]
    return planner.decide(Situation(graph, measurements, ScalePlan.uniform(graph), log2_scale))


def test_a_plan_that_fits_is_kept() -> None:
    graph = chain(4)
    decision = decide(graph, arrivals(graph, dict.fromkeys(range(5), -10)))
    assert not decision.changed and decision.plan.is_uniform and decision.log2_scale == 16
    assert str(structure_report(decision, graph)) == "one loss scale is enough, 2^16"


def test_one_scale_is_moved_when_one_is_enough() -> None:
    graph = chain(4)
    decision = decide(graph, arrivals(graph, dict.fromkeys(range(5), 5)))
    assert decision.plan.is_uniform and decision.scales == (6,) and decision.log2_scale == 6
    assert str(structure_report(decision, graph)) == "one loss scale is enough, 2^6"


def test_a_chain_that_no_scale_fits_gets_as_many_as_it_needs() -> None:
    graph = chain(4)
    # The leaf takes what arrives at node 4's output, so it sits with the far end.
    decision = decide(graph, arrivals(graph, {0: 0, 1: -30, 2: -30, 3: -60, 4: -60}), flushed=0)
    assert len(decision.scales) == 2 and len(decision.groups) == 2
    for group in decision.groups:
        assert group.needs is not None and group.allows is not None
    assert "2 loss scales are needed, in 2 groups:" in str(structure_report(decision, graph))


def test_the_report_names_layers() -> None:
    graph = chain(2)
    decision = decide(graph, arrivals(graph, {0: 0, 1: 0, 2: -60}))
    text = str(structure_report(decision, graph, {2: "decoder.3"}))
    assert "decoder.3 (SinBackward0) needs at least 2^" in text
    assert "allows at most 2^" in text and "parameters are at 2^" in text


@pytest.mark.parametrize("few_are_small", [True, False])
def test_leaves_take_the_scale_that_spares_most_edges_a_multiplication(few_are_small: bool) -> None:
    torch.manual_seed(0)
    weights = [torch.randn(2, 2, requires_grad=True) for _ in range(5)]
    x = torch.ones(2, 2)
    for weight in weights:
        x = torch.mm(x, weight)
    graph = BackwardGraph.of(x.sum())
    products = [node for node, name in enumerate(graph.names) if name == "MmBackward0"]
    octaves = {n: -60 if (index > 3) == few_are_small else 0 for index, n in enumerate(products)}
    windows = Windows(product_format="e5m2")
    decision = windows.decide(
        Situation(graph, arrivals(graph, octaves), ScalePlan.uniform(graph), 16)
    )
    assert len(decision.scales) == 2
    assert decision.log2_scale == decision.scales[0 if few_are_small else 1]
    cuts = [graph.edges[number].target for number in decision.plan.cuts(graph)]
    assert sum(target in graph.leaves for target in cuts) == 1


def test_only_what_left_its_window_is_planned_anew() -> None:
    graph = chain(4)
    start = ScalePlan.of(graph, {2: 20, 3: 20, 4: 20})
    planner = Windows(flushed=0)
    near, far = {0: -4, 1: -4, 2: -22}, {3: -40, 4: -40}
    keep = planner.decide(Situation(graph, arrivals(graph, near | far), start, 10))
    assert not keep.changed and keep.plan == start
    moved = planner.decide(Situation(graph, arrivals(graph, near | {3: -56, 4: -56}), start, 10))
    exponents = [moved.plan.exponents[n] + moved.log2_scale for n in range(5)]
    # Node 2 produces what arrives at node 3, so it goes up with it, as far as its own input allows.
    assert exponents == [10, 10, 33, 33, 33]


def test_a_group_that_overflowed_goes_down_at_once_and_the_others_stay() -> None:
    graph = chain(4)
    start = ScalePlan.of(graph, {3: 20, 4: 20})
    measurements = Measurements(
        graph.signature,
        tuple(
            PlaceRecord(n, "arrived", -1, "fp16", 0, Counts(1.0, 0, int(n >= 3), 0, (5,)))
            for n in range(5)
        ),
    )
    decision = Windows(backoff=2).decide(Situation(graph, measurements, start, 10))
    assert decision.overflowed == (3,) and decision.log2_scale == 10
    assert decision.plan.exponents == (0, 0, 0, 18, 18, 0)
    assert "an overflow began at node 3" in str(structure_report(decision, graph))


def test_an_overflow_at_a_leaf_lowers_the_loss_scale_alone() -> None:
    graph = chain(3)
    start = ScalePlan.of(graph, {1: 5})
    plan, scale = lowered(graph, start, 10, graph.leaves, 2)
    absolute = [k + scale for k in plan.exponents]
    assert scale == 8 and absolute[:4] == [10, 15, 10, 10] and absolute[graph.leaves[0]] == 8


def test_suspects_lead_to_bad_leaves_only_or_hand_them_their_gradient() -> None:
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    graph = BackwardGraph.of((a.exp().cos() + b.sin()).sum())
    of_a, of_b = graph.leaves if "Exp" in graph.names[-2] else reversed(graph.leaves)
    for leaves, wanted in (
        ([], set()),
        ([of_a], {"AddBackward0", "CosBackward0", "ExpBackward0"}),
        ([of_b], {"AddBackward0", "SinBackward0"}),
        ([of_a, of_b], {"SumBackward0", *(f"{n}Backward0" for n in ("Add", "Cos", "Exp", "Sin"))}),
    ):
        found = suspects(graph, leaves)
        assert {graph.names[node] for node in found} == wanted and list(found) == sorted(found)


def test_the_product_whose_weight_overflowed_is_a_suspect_though_its_input_did_not() -> None:
    first, second = (torch.nn.Linear(2, 2, bias=False) for _ in range(2))
    graph = BackwardGraph.of(second(first(torch.ones(3, 2))).sum())
    (leaf,) = (n for n, p in graph.parameters().items() if p is second.weight)
    names = {graph.names[node] for node in suspects(graph, [leaf])}
    assert names == {"MmBackward0", "TBackward0"}


def test_a_leaf_is_a_suspect_if_nothing_else_leads_to_it_alone() -> None:
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    graph = BackwardGraph.of((a * b).sum())
    assert [graph.names[node] for node in suspects(graph, [graph.leaves[0]])] == [
        "MulBackward0",
        graph.names[graph.leaves[0]],
    ]


def products(choices: list[tuple[int, int, bool]]) -> Tensor:
    """A loss behind sums and products of what was made before; one parameter may be used often."""
    made = [torch.ones(2, requires_grad=True) for _ in range(3)]
    for first, second, add in choices:
        a, b = made[first % len(made)], made[second % len(made)]
        made.append(a + b if add else a * b)
    return torch.stack(made).sum()


def test_what_received_nothing_infinite_is_not_behind_an_overflow() -> None:
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    graph = BackwardGraph.of(torch.cat([a.exp().sin(), b.exp().cos()]).sum())
    spoilt = {"CatBackward0", "SinBackward0"}
    records = tuple(
        PlaceRecord(n, "arrived", -1, "fp16", 0, Counts(1.0, 0, int(name in spoilt), 0, (5,)))
        for n, name in enumerate(graph.names)
        if name != "ExpBackward0" and n not in graph.leaves
    )
    origins, behind = overflow_in(graph, Measurements(graph.signature, records))
    assert [graph.names[node] for node in origins] == ["CatBackward0"]
    assert [graph.names[node] for node in behind] == ["SinBackward0", "ExpBackward0"]


def test_what_is_held_at_the_loss_scale_does_not_pull_it_down_from_behind_an_overflow() -> None:
    graph = chain(4).pinning([3])
    bad = tuple(
        PlaceRecord(n, "arrived", -1, "fp16", 0, Counts(1.0, 0, int(n >= 2), 0, (5,)))
        for n in range(5)
    )
    measurements = Measurements(graph.signature, bad)
    assert overflow_in(graph, measurements) == ((2,), (4,))
    start = ScalePlan.of(graph, {2: 20, 4: 20})
    decision = Windows().decide(Situation(graph, measurements, start, 10))
    assert decision.log2_scale == 10
    assert suspects(graph, graph.leaves) == (0, 1, 2, 4)


def leads_to(graph: BackwardGraph, node: int) -> set[int]:
    """The node, and all below it."""
    found = {node}
    for edge in graph.edges:
        if edge.source in found:
            found.add(edge.target)
    return found


@given(
    choices=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans()), max_size=8),
    number=st.integers(0, 1000),
)
@settings(deadline=None)
def test_wherever_an_overflow_begins_somebody_on_that_edge_is_a_suspect(
    choices: list[tuple[int, int, bool]], number: int
) -> None:
    graph = BackwardGraph.of(products(choices))
    begun = graph.edges[number % len(graph.edges)]
    spoilt = leads_to(graph, begun.target)
    bad = spoilt.intersection(graph.leaves)
    found = suspects(graph, bad)
    assert begun.source in found
    assert all(bad & leads_to(graph, node) for node in found)


def test_an_origin_passes_through_nodes_that_were_not_measured() -> None:
    graph = chain(4)
    bad = {1: 1, 3: 1}
    records = tuple(
        PlaceRecord(n, "arrived", -1, "fp16", 0, Counts(1.0, 0, bad.get(n, 0), 0, (5,)))
        for n in (0, 1, 3)
    )
    assert overflow_in(graph, Measurements(graph.signature, records)) == ((1,), (2, 3, 4))
    assert overflow_in(graph, Measurements(graph.signature)) == ((), ())


def test_pinned_nodes_stay_at_the_loss_scale_and_limit_it() -> None:
    graph = chain(4).pinning([2])
    decision = decide(graph, arrivals(graph, {0: 0, 1: 0, 2: 0, 3: -60, 4: -60}))
    decision.plan.check(graph)
    assert decision.log2_scale <= 15


def test_what_no_scale_can_save_is_reported() -> None:
    graph = chain(1)
    counts = Counts(2.0**10, 0, 0, -40, (50, *[0] * 49, 50))
    record = PlaceRecord(1, "arrived", -1, "fp16", -20, counts)
    decision = decide(graph, Measurements(graph.signature, (record,)))
    (loss,) = {loss for loss in decision.losses if loss.node == 1}
    assert loss.share == 0.5 and "50.0% of its gradient is flushed" in str(
        structure_report(decision, graph)
    )


@given(octaves=st.lists(st.integers(-70, 20), min_size=6, max_size=6), scale=st.integers(-10, 30))
@settings(max_examples=60, deadline=None)
def test_a_new_plan_puts_every_node_in_its_window_and_is_then_kept(
    octaves: list[int], scale: int
) -> None:
    graph = chain(5)
    measurements = arrivals(graph, dict(enumerate(octaves)))
    planner = Windows()
    decision = planner.decide(Situation(graph, measurements, ScalePlan.uniform(graph), scale))
    decision.plan.check(graph)
    windows = planner.windows(graph, measurements)
    fixed_nodes = {*graph.leaves}
    for node, window in enumerate(windows):
        absolute = decision.plan.exponents[node] + decision.log2_scale
        if node not in fixed_nodes:
            assert window.lo <= absolute <= window.limit
    again = planner.decide(Situation(graph, measurements, decision.plan, decision.log2_scale))
    assert not again.changed and again.groups == decision.groups


def deep(
    depth: int, shrink: float, dtype: torch.dtype, leaf: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    """Layers that pass values on as they are and gradients `shrink` times smaller."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 32, generator=generator).to(torch.float16).to(dtype)
    weights = []
    for _ in range(depth):
        weight = (torch.randn(32, 32, generator=generator) / 32**0.5).to(torch.float16).to(leaf)
        weights.append(weight.requires_grad_())
        x = x @ weight.to(dtype)
        x = x * shrink + (x * (1 - shrink)).detach()
    return x.to(torch.promote_types(dtype, torch.float32)).square().mean(), weights


def cosines(found: list[Tensor], truth: list[Tensor], scale: float) -> list[float]:
    return [
        torch.nn.functional.cosine_similarity(
            (f.grad.double() / scale).flatten(),
            t.grad.flatten(),
            dim=0,
            eps=1e-300,  # type: ignore[union-attr]
        ).item()
        for f, t in zip(found, truth, strict=True)
    ]


def planned(
    depth: int, shrink: float, leaf: torch.dtype
) -> tuple[Decision, BackwardGraph, Measurements, list[float]]:
    """Rounds of measuring and planning until nothing changes; then each weight's cosine."""
    loss, truth = deep(depth, shrink, torch.float64, torch.float64)
    loss.backward()
    planner, log2_scale = Windows(), 16
    plan: ScalePlan | None = None
    for _ in range(12):
        loss, weights = deep(depth, shrink, torch.float16, leaf)
        walked = walk(loss)
        plan = plan or ScalePlan.uniform(walked.graph)
        measuring = measure(walked, plan.exponents, 2.0**log2_scale)
        rescale(walked, plan)
        (loss * 2.0**log2_scale).backward()
        measurements = measuring.result()
        decision = planner.decide(Situation(walked.graph, measurements, plan, log2_scale))
        if not decision.changed:
            break
        plan, log2_scale = decision.plan, decision.log2_scale
    return decision, walked.graph, measurements, cosines(weights, truth, 2.0**log2_scale)


def test_planning_saves_a_network_that_no_single_scale_can() -> None:
    decision, _, measurements, directions = planned(12, 2.0**-5, torch.float32)
    assert not decision.changed and len(decision.scales) > 1 and not decision.notes
    half = FloatFormat.of("fp16")
    for record in measurements.records:
        if record.kind == "arrived" and record.format == "fp16":
            assert record.counts.nonzero > 0
            assert flushed_share(record.counts, half, record.exponent) <= Windows().flushed
    assert min(directions) > 0.9999


def test_parameters_in_half_precision_that_one_scale_cannot_serve_are_reported() -> None:
    decision, graph, _, directions = planned(12, 2.0**-5, torch.float16)
    assert not decision.changed and min(directions) < 0.5
    assert "Keep the parameters in float32" in str(structure_report(decision, graph))


def test_ten_thousand_nodes_are_planned_in_near_linear_time() -> None:
    times = []
    for size in (2500, 10000):
        graph = chain(size)
        octaves = {node: -(node // (size // 8)) * 12 // 2 for node in range(size)}
        measurements = arrivals(graph, octaves)
        start = time.perf_counter()
        decision = decide(graph, measurements)
        times.append(time.perf_counter() - start)
        assert 1 < len(decision.groups) <= 8
    print(f"planning 2500 and 10000 nodes took {times[0] * 1e3:.0f} and {times[1] * 1e3:.0f} ms")


def test_a_users_function_decides() -> None:
    graph = chain(3)
    given = UserGiven(lambda graph, measurements: {1: 3, graph.leaves[0]: 9})
    decision = given.decide(
        Situation(graph, Measurements(graph.signature), ScalePlan.uniform(graph), 16)
    )
    assert decision.plan == ScalePlan.of(graph, {1: 3}) and decision.scales == (16, 19)
    assert decision.groups == connected_groups(graph, decision.plan, 16)
    plan = ScalePlan.of(graph, {2: 1})
    again = fixed(plan).decide(Situation(graph, Measurements(graph.signature), plan, 16))
    assert again.plan == plan and not again.changed


def test_a_users_plan_for_another_graph_is_refused() -> None:
    graph, other = chain(3), chain(4)
    with pytest.raises(ValueError, match="signature"):
        fixed(ScalePlan.uniform(other)).decide(
            Situation(graph, Measurements(graph.signature), ScalePlan.uniform(graph), 16)
        )


def test_excluded_modules_stay_at_the_loss_scale() -> None:
    graph = chain(4)
    planner = Excluding(Windows(), ["decoder"])
    names = {0: "head", 1: "head", 2: "decoder.0", 3: "decoder.1", 4: "encoder"}
    measurements = arrivals(graph, {0: 0, 1: 0, 2: -60, 3: -60, 4: -60})
    decision = planner.decide(Situation(graph, measurements, ScalePlan.uniform(graph), 16, names))
    assert decision.plan.exponents[2] == decision.plan.exponents[3] == 0
    with pytest.raises(ValueError, match=r"no node of this graph belongs to 'dec'"):
        Excluding(Windows(), ["dec"]).decide(
            Situation(graph, measurements, ScalePlan.uniform(graph), 16, names)
        )


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"flushed": 1.0}, "share"),
        ({"flushed": float("nan")}, "share"),
        ({"flushed": -1e-3}, "flushed=-0.001"),
        ({"headroom": 0}, "at least 1"),
        ({"backoff": 0}, "at least 1"),
        ({"product_format": "fp15"}, r"`Windows\(product_format='fp15'\)` must be a number format"),
        (
            {"result_format": "float64"},
            r"`Windows\(result_format='float64'\)` must be a number format",
        ),
        ({"product_format": ["e5m2"]}, "must be a number format"),
        ({"product_format": torch.int8}, "must be a number format"),
    ],
)
def test_settings_out_of_range_are_refused(settings_: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Windows(**settings_)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["flushed", "headroom", "backoff"])
@pytest.mark.parametrize("value", [True, "4", None, torch.tensor(4.0)], ids=str)
def test_settings_of_another_kind_are_refused(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=rf"`Windows\({name}=.*must be an? (number|int)"):
        Windows(**{name: value})  # type: ignore[arg-type]


def test_what_a_planner_is_made_of_is_checked_when_it_is_made() -> None:
    with pytest.raises(TypeError, match=r"`UserGiven\(function=3\)` must be a function of"):
        UserGiven(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`fixed\(plan=\{1: 5\}\)` must be a `ScalePlan`"):
        fixed({1: 5})  # type: ignore[arg-type]
    for wrong in (3, None, ["head", 4]):
        with pytest.raises(TypeError, match=r"`Excluding\(modules=.*must be names of modules"):
            Excluding(Windows(), wrong)  # type: ignore[arg-type]
    assert Excluding(Windows(), (name for name in "ab")).modules == ("a", "b")  # type: ignore[arg-type]
