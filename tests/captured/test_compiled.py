"""A compiled step is the eager loop, bit for bit, in one graph and without a host read."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assertions import assert_same_bits
from captured.steps import (
    HUGE,
    MODELS,
    OPTIMIZERS,
    assert_same_traces,
    batches,
    build,
    float32_loss,
    run,
    tensors_of,
)
from gradscale import Band, Dynamic, Guarded, LastMaximum, LogNormal, Quantile, Static

NAN = float("nan")
WEIGHTS = (1.0, 0.5, HUGE, 1.0, HUGE, HUGE, 2.0, NAN, 1.0)
QUICK = Dynamic(init_scale=2.0**10, growth_interval=2)


def with_compiled_optimizer(eager, first_batch):
    """After its first step, the loop steps as torch documents it: `torch.compile(optimizer.step)`.

    Traced, Adam counts in tensors and multiplies and adds at once; a step counter of its own, too.
    """
    trace = run(eager, [first_batch])
    optimizer = eager._optimizer
    optimizer.step = torch.compile(optimizer.step, backend="aot_eager", isolate_recompiles=True)
    return trace


def pair(model, optimizer, **options):
    eager = build(model, optimizer, mode="eager", **options)
    return eager, build(model, optimizer, mode="compile", **{"backend": "aot_eager", **options})


def assert_same(eager, compiled):
    for a, b in zip(tensors_of(eager), tensors_of(compiled), strict=True):
        assert_same_bits(a, b)
    assert torch.equal(eager.steps, compiled.steps)
    assert torch.equal(eager.skipped_steps, compiled.skipped_steps)


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_a_compiled_step_has_the_bits_of_the_eager_one(optimizer, max_norm):
    eager, compiled = pair("mlp", optimizer, policy=QUICK, max_norm=max_norm)
    data = batches(MODELS["mlp"][1], WEIGHTS)
    assert_same_traces(run(eager, data), run(compiled, data))
    assert_same(eager, compiled)
    assert compiled.captured
    assert compiled.skipped_steps.item() == 4


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_adam_has_the_bits_of_a_compiled_adam(optimizer):
    eager, compiled = pair("mlp", optimizer, policy=QUICK, max_norm=0.5)
    first, *data = batches(MODELS["mlp"][1], WEIGHTS)
    trace = with_compiled_optimizer(eager, first) + run(eager, data)
    assert_same_traces(trace, run(compiled, [first, *data]))
    assert_same(eager, compiled)


def test_adam_as_written_differs_by_rounding_alone():
    eager, compiled = pair("mlp", "adam", policy=QUICK)
    data = batches(MODELS["mlp"][1], WEIGHTS)
    assert_same_traces(
        [row[1:3] for row in run(eager, data)], [r[1:3] for r in run(compiled, data)]
    )
    for a, b in zip(tensors_of(eager), tensors_of(compiled), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["conv", "transformer"])
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_real_models_have_the_same_bits(model, optimizer):
    eager, compiled = pair(model, optimizer, policy=QUICK, max_norm=1.0)
    first, *data = batches(MODELS[model][1], WEIGHTS)
    adam = optimizer.startswith("adam")
    trace = with_compiled_optimizer(eager, first) if adam else run(eager, [first])
    assert_same_traces(trace + run(eager, data), run(compiled, [first, *data]))
    assert_same(eager, compiled)


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy",
    [
        Dynamic(init_scale=2.0**8, hysteresis=2, tolerance=0.25, growth_interval=2),
        Band(init_scale=2.0**8),
        LastMaximum(),
        LogNormal(),
        Quantile(),
        Guarded(LastMaximum(), Dynamic(init_scale=2.0**10, growth_interval=2)),
        Static(2.0**10),
    ],
    ids=lambda policy: type(policy).__name__,
)
def test_every_policy_moves_as_in_the_eager_loop(policy):
    eager, compiled = pair("mlp", "momentum", policy=policy, max_norm=1.0)
    data = batches(MODELS["mlp"][1], WEIGHTS)
    assert_same_traces(run(eager, data), run(compiled, data))
    assert_same(eager, compiled)


def test_micro_batches_are_accumulated_as_in_the_eager_loop():
    eager, compiled = pair("mlp", "momentum", policy=QUICK, micro_batches=4, max_norm=0.5)
    singles = batches(MODELS["mlp"][1], (1.0, 1.0, 0.5, 2.0) * 3 + (1.0, HUGE, 1.0, 1.0) * 2)
    data = [singles[i : i + 4] for i in range(0, len(singles), 4)]
    assert_same_traces(run(eager, data), run(compiled, data))
    assert_same(eager, compiled)
    assert compiled.skipped_steps.item() == 2


def test_any_sequence_of_batches_ends_in_the_same_bits():
    eager, compiled = pair("mlp", "momentum", policy=QUICK, max_norm=1.0)
    run(eager, batches(MODELS["mlp"][1], (1.0, 1.0)))
    run(compiled, batches(MODELS["mlp"][1], (1.0, 1.0)))

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.sampled_from([1.0, 2.0**-40, 2.0**30, HUGE, -HUGE, NAN]), max_size=6))
    def same(weights):
        data = batches(MODELS["mlp"][1], weights)
        assert_same_traces(run(eager, data), run(compiled, data))
        assert_same(eager, compiled)

    same()


def test_a_skipped_step_leaves_everything_as_it_was():
    step = build("mlp", "adamw", mode="compile", policy=QUICK, backend="aot_eager")
    good, bad = batches(MODELS["mlp"][1], (1.0, HUGE))
    run(step, [good, good])
    *before, scale = [*tensors_of(step)[:-6], step.scale.clone()]
    step.step(bad)
    for old, new in zip(before, tensors_of(step)[:-6], strict=True):
        assert_same_bits(old, new)
    assert step.scale.item() == scale.item() / 2
    assert step.last_found_inf.item() == 1


def test_bad_data_skips_without_lowering_the_scale():
    step = build("mlp", "momentum", mode="compile", policy=QUICK, backend="aot_eager")
    good, bad = batches(MODELS["mlp"][1], (1.0, NAN))
    run(step, [good, good, bad])
    assert step.last_found_inf.item() == 1
    assert step.scale.item() == 2.0**11


def test_the_whole_step_is_one_graph_that_reads_nothing():
    graphs = []

    def recording(graph, inputs):
        graphs.append(graph)
        return graph.forward

    step = build("mlp", "momentum", mode="compile", max_norm=1.0, backend=recording)
    data = batches(MODELS["mlp"][1], (1.0, 1.0, HUGE, 1.0))
    run(step, data[:2])
    with torch.profiler.profile() as profile:
        for batch in data[2:]:
            step.step(batch)
    assert len(graphs) == 1
    called = {str(node.target) for node in graphs[0].graph.nodes}
    assert "item" not in called and "_local_scalar_dense" not in called
    names = {event.name for event in profile.events()}
    assert "aten::linear" in names
    assert not {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero"} & names


@pytest.mark.slow
def test_the_default_backend_takes_the_same_decisions():
    options = {"policy": QUICK, "max_norm": 0.5, "loss_fn": float32_loss}
    eager, compiled = pair("mlp", "momentum", backend="inductor", **options)
    data = batches(MODELS["mlp"][1], WEIGHTS)
    decided = [row[1:3] for row in run(eager, data)]
    assert_same_traces(decided, [row[1:3] for row in run(compiled, data)])
    for a, b in zip(tensors_of(eager), tensors_of(compiled), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
