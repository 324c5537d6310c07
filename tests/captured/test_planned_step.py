"""A captured step that measures and follows a plan is the eager layer-wise one, bit for bit."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters

from assertions import assert_same_bits
from captured.steps import (
    HUGE,
    MODELS,
    assert_same_traces,
    batches,
    build,
    needs_compiled_backward,
    run,
    tensors_of,
)
from gradscale import Adaptive, CapturedStep, Dynamic, Layerwise
from gradscale.captured.planned_graph import PlannedGraph
from gradscale.captured.planned_step import PlannedStep
from gradscale.layerwise import layerwise as acting
from gradscale.plans import ScalePlan, UserGiven

QUICK = Dynamic(init_scale=2.0**10, growth_interval=20)


class Wandering:
    """A planner that draws another plan whenever it is asked, and keeps what it was shown."""

    def __init__(self):
        self.shown = []

    def __call__(self, graph, measurements):
        self.shown.append(measurements)
        generator = torch.Generator().manual_seed(len(self.shown))
        return ScalePlan.random(graph, generator, -6, 6)


def deep(depth):
    layers = [layer for _ in range(depth) for layer in (nn.Linear(32, 32), nn.GELU())]
    return nn.Sequential(*layers, nn.Linear(32, 3))


def deep_batches(count):
    torch.manual_seed(1)
    return [(torch.randn(8, 32), torch.randint(3, (8,))) for _ in range(count)]


def half_loss(model, batch):
    with torch.autocast("cpu", torch.float16):
        output = model(batch[0])
    return F.cross_entropy(output.float(), batch[1])


def deep_step(depth=24, **options):
    if options["mode"] == "compile":
        needs_compiled_backward()
    torch.manual_seed(0)
    model = deep(depth)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return CapturedStep(model, half_loss, optimizer, layerwise=True, **options)


def wandering(name, weights, every=8, **options):
    """The same steps as written and compiled, under plans that change at random."""
    found = []
    for mode in ("eager", "compile"):
        planner = Wandering()
        layerwise = Layerwise(UserGiven(planner), measure_every=every)
        options = {"policy": QUICK, "max_norm": 1.0, "backend": "aot_eager", **options}
        step = build(name, "momentum", mode=mode, layerwise=layerwise, **options)
        counters.clear()
        found.append((step, run(step, batches(MODELS[name][1], weights)), planner))
    (eager, trace, one), (compiled, traced, other) = found
    assert_same_traces(trace, traced)
    for a, b in zip(tensors_of(eager), tensors_of(compiled), strict=True):
        assert_same_bits(a, b)
    for a, b in zip(one.shown, other.shown, strict=True):
        # Batch norm is another operator in a traced graph, which is thus a graph of its own, with
        # other random plans: these leave the same bits, and what is measured stands at others.
        if a.signature == b.signature:
            assert a.records == b.records
        else:
            assert name == "conv"
    return compiled, other


def test_plans_that_change_leave_the_bits_of_the_eager_steps():
    step, planner = wandering("mlp", [*[1.0] * 7, HUGE, 0.5] * 4)
    assert len(planner.shown) >= 8
    assert step.skipped_steps.item() >= 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_two_hundred_steps_of_changing_plans_and_overflows_compile_each_form_once(name):
    step, planner = wandering(name, [*[1.0] * 7, HUGE, *[0.5] * 3] * 18 + [1.0] * 2)
    assert step.steps.item() == 200
    assert len(planner.shown) >= 20
    assert step.skipped_steps.item() >= 10
    assert counters["stats"]["unique_graphs"] == 2  # one that measures, one that does not


class Gain(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.7]))

    def forward(self, x):
        return x + self.weight


def test_a_gradient_that_the_loss_expands_keeps_its_bits_under_a_compiled_plan():
    needs_compiled_backward()
    torch.manual_seed(0)
    inputs = [(torch.randn(16, 33),) for _ in range(6)]
    found = []
    for mode in ("eager", "compile"):
        model, planner = Gain(), Wandering()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step = CapturedStep(
            model,
            lambda model, batch: model(batch[0]).sum() * 0.3,
            optimizer,
            layerwise=Layerwise(UserGiven(planner), measure_every=1),
            mode=mode,
            backend="aot_eager",
        )
        for batch in inputs:
            step.step(batch)
        assert len(planner.shown) >= 3
        found.append(model.weight.detach().clone())
    assert_same_bits(*found)


@pytest.mark.slow
def test_the_planner_finds_the_scales_that_it_finds_in_the_eager_steps():
    eager = deep_step(mode="eager")
    compiled = deep_step(mode="compile", backend="aot_eager")
    for batch in deep_batches(12):
        assert torch.equal(eager.step(batch), compiled.step(batch))
        assert eager.scale == compiled.scale
    assert "loss scales are needed" in str(compiled.scaler.layerwise.report())
    assert compiled.scaler.layerwise.report() == eager.scaler.layerwise.report()
    for one, two in zip(tensors_of(eager), tensors_of(compiled), strict=True):
        assert_same_bits(one, two)


def test_moments_for_adaptive_are_those_of_the_eager_steps():
    reports = []
    for mode in ("eager", "compile"):
        step = build(
            "mlp", "sgd", mode=mode, layerwise=Adaptive(rule="product"), backend="aot_eager"
        )
        run(step, batches(MODELS["mlp"][1], [1.0] * 6))
        reports.append(str(step.scaler.layerwise.report()))
    assert reports[0] == reports[1]


@pytest.mark.slow
def test_micro_batches_are_measured_together():
    needs_compiled_backward()
    found = []
    for mode in ("eager", "compile"):
        torch.manual_seed(0)
        model, planner = deep(3), Wandering()
        step = CapturedStep(
            model, half_loss, torch.optim.SGD(model.parameters(), lr=0.01), mode=mode,
            layerwise=Layerwise(UserGiven(planner), measure_every=2), micro_batches=2,
            backend="aot_eager",
        )  # fmt: skip
        data = deep_batches(12)
        losses = [step.step(data[i : i + 2]) for i in range(0, 12, 2)]
        found.append((losses, planner.shown, tensors_of(step)))
    assert found[0][0] == found[1][0]
    assert found[0][1] == found[1][1]
    for one, two in zip(found[0][2], found[1][2], strict=True):
        assert_same_bits(one, two)


class Tied(nn.Module):
    """One layer used twice: autocast casts its weight once, a compiler wherever it is used."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.head(self.layer(self.layer(x).tanh()).tanh()).float()


def test_a_graph_that_the_compiler_writes_otherwise_is_measured_as_it_is():
    needs_compiled_backward()
    losses = []
    for layerwise in (False, Layerwise(UserGiven(Wandering()), measure_every=2)):
        torch.manual_seed(0)
        model = Tied()
        step = CapturedStep(
            model, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
            torch.optim.SGD(model.parameters(), lr=0.1), mode="compile", layerwise=layerwise,
            backend="aot_eager", policy=QUICK,
        )  # fmt: skip
        torch.manual_seed(1)
        data = [(torch.randn(4, 8), torch.randint(3, (4,))) for _ in range(8)]
        losses.append([step.step(batch) for batch in data])
    assert losses[0] == losses[1]
    eager, traced = step.scaler.layerwise.tracks
    casts = [track.graph.names.count("ToCopyBackward0") for track in (eager, traced)]
    assert casts[1] > casts[0]
    assert not traced.plan.is_uniform


@pytest.mark.slow
def test_a_resumed_run_follows_its_plan_from_the_first_step():
    def steps(step, data):
        return [step.step(batch) for batch in data]

    data = deep_batches(14)
    whole = deep_step(4, mode="compile", backend="aot_eager")
    steps(whole, data[:6])
    states = (whole._written.model.state_dict(), whole._optimizer.state_dict(), whole.state_dict())
    states = torch.utils._pytree.tree_map(
        lambda each: each.clone() if isinstance(each, torch.Tensor) else each, states
    )
    expected = steps(whole, data[6:])
    again = deep_step(4, mode="compile", backend="aot_eager")
    again._written.model.load_state_dict(states[0])
    again._optimizer.load_state_dict(states[1])
    again.load_state_dict(states[2])
    assert steps(again, data[6:]) == expected
    assert again.captured
    for one, two in zip(tensors_of(whole), tensors_of(again), strict=True):
        assert_same_bits(one, two)


def test_batches_that_take_several_ways_train_at_one_scale_and_a_warning_says_so():
    needs_compiled_backward()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss_fn(model, batch):
        output = model(batch)
        return (output.tanh() if len(batch) > 4 else output).square().mean()

    step = CapturedStep(
        model, loss_fn, optimizer, mode="compile", backend="aot_eager",
        layerwise=Layerwise(UserGiven(Wandering()), measure_every=2),
    )  # fmt: skip
    short, long = torch.randn(4, 8), torch.randn(6, 8)
    for _ in range(4):
        step.step(short)
    with pytest.warns(UserWarning, match="batches take several ways through the model"):
        step.step(long)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in (long, short, long, short):
            step.step(batch)
    assert all(track.plan.is_uniform for track in step.scaler.layerwise.tracks)
    assert "one loss scale, because its captured steps run through several graphs" in str(
        step.scaler.layerwise.report()
    )


def test_masters_are_refused_in_a_graph_whose_plan_would_move_their_exponents():
    from gradscale import half_precision

    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    half_precision(model, optimizer, torch.float16)
    with pytest.raises(ValueError, match="keep exponents of their own"):
        CapturedStep(model, lambda m, b: m(b).sum(), optimizer, mode="cuda_graph", layerwise=True)


def test_a_recorded_step_is_recorded_again_only_if_a_plan_cuts_other_edges(monkeypatch):
    """The host's side of a CUDA graph; what stands in for one repeats the step as written."""
    torch.manual_seed(0)
    plans = [{}, {}, {1: 3}, {1: -2}, {1: 5}, {3: 4}, {}]
    asked = iter(plans)
    layerwise = Layerwise(UserGiven(lambda graph, measurements: next(asked, {})), measure_every=2)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    step = CapturedStep(
        model, lambda m, b: m(b).square().mean(), torch.optim.SGD(model.parameters(), lr=0.1),
        mode="eager", layerwise=layerwise,
    )  # fmt: skip
    recorded, followed = [], []

    def record(given):
        recorded.append(layerwise.tracks.latest.plan)

        def replay(batches):
            followed.append(layerwise.tracks.latest.plan)
            with monkeypatch.context() as patch:
                patch.setattr(acting, "capturing", lambda: True)
                return step._written(batches)

        return replay

    graph = PlannedStep(PlannedGraph(record, layerwise), step.scaler, step._optimizer)
    step.step(torch.randn(4, 8))
    counted = layerwise.timing.steps
    for number in range(12):
        if layerwise.timing.now:
            step.step(torch.randn(4, 8))
        else:
            graph([torch.randn(4, 8)])
        assert layerwise.timing.steps == counted + number + 1
    assert [plan.exponents[1] for plan in followed] == [3, -2, 5, 0, 0]
    assert len(recorded) == 3  # the first three plans cut the same edges


@pytest.mark.slow
def test_inductor_takes_the_decisions_of_the_eager_steps():
    eager, compiled = deep_step(mode="eager"), deep_step(mode="compile")
    for batch in deep_batches(12):
        eager.step(batch)
        compiled.step(batch)
        assert torch.equal(eager.scale, compiled.scale)
    report = str(compiled.scaler.layerwise.report())
    assert report.splitlines()[0] == str(eager.scaler.layerwise.report()).splitlines()[0]


@pytest.mark.cuda
@pytest.mark.parametrize("name", sorted(MODELS))
def test_on_a_gpu_a_recorded_step_follows_plans_to_the_bits_of_the_eager_one(name, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    found = []
    for mode in ("eager", "cuda_graph"):
        layerwise = Layerwise(UserGiven(Wandering()), measure_every=8)
        step = build(name, "momentum", "cuda", mode=mode, policy=QUICK, layerwise=layerwise)
        weights = [*[1.0] * 7, HUGE, 0.5] * 4
        found.append((run(step, batches(MODELS[name][1], weights, "cuda")), tensors_of(step)))
    assert_same_traces(found[0][0], found[1][0])
    for one, two in zip(found[0][1], found[1][1], strict=True):
        assert_same_bits(one, two)
