"""What a user meets: warm-up, resuming, settings that change, and errors that show the way out."""

import copy
import re

import pytest
import torch
from torch import nn

import gradscale
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
    weighted_loss,
)
from gradscale import CapturedStep, Dynamic
from gradscale.captured import refusals

QUICK = Dynamic(init_scale=2.0**10, growth_interval=2)
DATA = (1.0, HUGE, 1.0, 0.5, HUGE, 1.0)


def compiled(optimizer="momentum", **options):
    return build("mlp", optimizer, mode="compile", backend="aot_eager", policy=QUICK, **options)


def data_of(weights=DATA):
    return batches(MODELS["mlp"][1], weights)


def test_the_eager_mode_is_the_loop_with_torchs_own_scaler():
    step = build("mlp", "momentum", mode="eager", policy=QUICK, max_norm=0.5)
    torch.manual_seed(0)
    model = MODELS["mlp"][0]()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, dampening=0.1, weight_decay=0.01
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    for batch in data_of():
        optimizer.zero_grad()
        loss = weighted_loss(model, batch)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        assert_same_bits(step.step(batch), loss.detach())
        assert step.scale.item() == scaler.get_scale()
    for ours, torchs in zip(step._written.model.parameters(), model.parameters(), strict=True):
        assert_same_bits(ours, torchs)


def test_steps_run_as_written_until_one_was_taken():
    step = compiled()
    seen = []
    for batch in data_of((HUGE, HUGE, 1.0, 1.0)):
        step.step(batch)
        seen.append(step.captured)
    assert seen == [False, False, False, True]


# Adam tells a step as written from a compiled one: they round differently.
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
@pytest.mark.parametrize("saved_after", [1, 3])
def test_a_resumed_run_has_the_bits_of_one_that_was_not_interrupted(saved_after, optimizer):
    whole, first, second = (compiled(optimizer, max_norm=0.5) for _ in range(3))
    data = data_of()
    expected = run(whole, data)
    run(first, data[:saved_after])
    saved = copy.deepcopy(
        (
            first._written.model.state_dict(),
            first._optimizer.state_dict(),
            first.state_dict(),
        )
    )
    second._written.model.load_state_dict(saved[0])
    second._optimizer.load_state_dict(saved[1])
    second.load_state_dict(saved[2])
    assert_same_traces(expected[saved_after:], run(second, data[saved_after:]))
    for a, b in zip(tensors_of(whole), tensors_of(second), strict=True):
        assert_same_bits(a, b)
    assert second.steps.item() == 6
    assert second.skipped_steps.item() == 2


def test_its_state_is_read_by_weights_only_loading(tmp_path):
    step = compiled()
    run(step, data_of()[:2])
    torch.save(step.state_dict(), tmp_path / "step.pt")
    assert torch.load(tmp_path / "step.pt", weights_only=True) == step.state_dict()


def test_loading_an_optimizer_captures_anew():
    step = compiled()
    data = data_of((1.0, 1.0, 1.0))
    run(step, data[:2])
    assert step.captured
    before = copy.deepcopy((step._written.model.state_dict(), step._optimizer.state_dict()))
    first = step.step(data[2])
    step._written.model.load_state_dict(before[0])
    step._optimizer.load_state_dict(before[1])
    assert not step.captured
    parameters = [p.clone() for p in step._written.model.parameters()]
    assert_same_bits(step.step(data[2]), first)
    moved = zip(parameters, step._written.model.parameters(), strict=True)
    assert all(not torch.equal(a, b) for a, b in moved)


def test_zero_grad_between_steps_changes_nothing():
    one, other = compiled(), compiled()
    for batch in data_of():
        assert_same_bits(one.step(batch), other.step(batch))
        other._optimizer.zero_grad()
    for a, b in zip(tensors_of(one), tensors_of(other), strict=True):
        assert_same_bits(a, b)


def test_a_batch_of_another_shape_can_run_as_written_in_between():
    eager = build("mlp", "momentum", mode="eager", policy=QUICK)
    step = compiled()
    data = data_of((1.0, 1.0, 1.0, 1.0))
    data[2] = tuple(t[:3] if t.dim() else t for t in data[2])
    expected = [eager.step(batch) for batch in data]
    seen = [step.step(data[0]), step.step(data[1]), step.eager_step(data[2]), step.step(data[3])]
    for a, b in zip(expected, seen, strict=True):
        assert_same_bits(a, b)


def test_a_changed_number_is_refused_and_recapture_takes_it_up():
    step = compiled()
    data = data_of((1.0, 1.0, 1.0))
    run(step, data[:2])
    step._optimizer.param_groups[0]["lr"] = 0.0
    with pytest.raises(RuntimeError, match=r"captured step has lr=0\.1, .* now has lr=0\.0.*"):
        step.step(data[2])
    step.recapture()
    before = [p.clone() for p in step._written.model.parameters()]
    step.step(data[2])
    for old, new in zip(before, step._written.model.parameters(), strict=True):
        assert_same_bits(old, new.detach())


def test_a_learning_rate_that_is_a_tensor_follows_its_schedule():
    needs_compiled_backward()

    def scheduled(mode):
        torch.manual_seed(0)
        model = MODELS["mlp"][0]()
        optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.5), momentum=0.5)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        step = CapturedStep(
            model, weighted_loss, optimizer, mode=mode, policy=QUICK, backend="aot_eager"
        )
        losses = []
        for batch in data_of((1.0, 1.0, 1.0, 1.0)):
            losses.append(step.step(batch))
            schedule.step()
        return step, losses

    eager, step = scheduled("eager"), scheduled("compile")
    for a, b in zip(eager[1], step[1], strict=True):
        torch.testing.assert_close(a, b)
    assert step[0].captured
    for a, b in zip(tensors_of(eager[0]), tensors_of(step[0]), strict=True):
        torch.testing.assert_close(a, b)


def test_before_the_first_step_there_is_nothing_to_report():
    step = compiled()
    assert step.scale.item() == 2.0**10
    with pytest.raises(RuntimeError, match=r"there was none yet\. Call `step\(batch\)` first"):
        _ = step.last_found_inf


def linear(make=lambda p: torch.optim.SGD(p, lr=0.1), **options):
    model = nn.Linear(4, 1)
    return CapturedStep(
        model, lambda m, b: m(b).mean(), make(model.parameters()), **{"mode": "compile", **options}
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "graph"}, r"mode='graph'\)` must be 'cuda_graph', 'compile' or 'eager'"),
        ({"max_norm": -1.0}, r"max_norm=-1\.0\)` must be 0 or more.*Pass None to clip nothing"),
        (
            {"micro_batches": 0},
            r"micro_batches=0\)` must be a whole number of at least 1\. Leave it out",
        ),
        ({"warmup": 0}, r"warmup=0\)` must be a whole number of at least 1\. Leave it out"),
    ],
)
def test_what_cannot_be_captured_is_refused_with_the_way_out(options, words):
    with pytest.raises(ValueError, match=words):
        linear(**options)


def test_a_torch_that_compiles_no_backward_pass_is_refused_with_the_version_that_does(monkeypatch):
    monkeypatch.setattr(refusals, "can_compile_backward", lambda: False)
    version = re.escape(torch.__version__)
    words = rf"torch {version} does not compile backward passes; 2\.13 does\. Upgrade it, or pass"
    with pytest.raises(RuntimeError, match=words):
        linear()


def test_a_fused_optimizer_is_not_compiled():
    needs_compiled_backward()
    with pytest.raises(ValueError, match=r"out of its graphs\. Build `SGD\(…, foreach=True\)`"):
        linear(lambda p: torch.optim.SGD(p, lr=0.1, fused=True))


def test_a_cuda_graph_needs_parameters_on_cuda():
    with pytest.raises(RuntimeError, match=r"parameters are on 'cpu'.*or pass `mode='compile'`"):
        linear(mode="cuda_graph")


def test_an_optimizer_with_hooks_is_not_compiled():
    needs_compiled_backward()

    def hooked(parameters):
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        optimizer.register_step_post_hook(lambda *_: None)
        return optimizer

    with pytest.raises(ValueError, match=r"has step hooks, which would not run.*cuda_graph"):
        linear(hooked)


def test_masters_of_a_half_precision_model_are_not_compiled():
    needs_compiled_backward()
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradscale.half_precision(model, optimizer)
    with pytest.raises(ValueError, match=r"(masters of a half-precision model|has step hooks)"):
        CapturedStep(model, lambda m, b: m(b).mean(), optimizer, mode="compile")


def test_a_step_within_autocast_is_refused():
    step = compiled()
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(RuntimeError, match="Enter autocast inside `loss_fn`"),
    ):
        step.step(data_of()[0])


def test_too_few_micro_batches_are_refused():
    step = compiled(micro_batches=2)
    with pytest.raises(ValueError, match=r"was given 1 of 2 micro-batches. Pass a list"):
        step.step(data_of()[0][:1])


def test_a_parameter_without_its_gradient_is_refused():
    needs_compiled_backward()
    model = nn.ModuleDict({"a": nn.Linear(4, 1), "b": nn.Linear(4, 1)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss_fn(model, batch):
        return sum(model[name](x).mean() for name, x in batch.items())

    step = CapturedStep(model, loss_fn, optimizer, mode="compile", backend="aot_eager")
    x = torch.ones(2, 4)
    step.step({"a": x, "b": x})
    with pytest.raises(Exception, match="had a gradient in an earlier step has none now"):
        step.step({"a": x})


def frozen(step, layer, value=False):
    """The layer of the network that `step` trains, no longer trained, or again."""
    step._written.model[layer].requires_grad_(value)
    return [p.clone() for p in step._written.model[layer].parameters()]


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_freezing_is_noticed_and_recapture_trains_the_rest_alone(optimizer):
    step, eager = compiled(optimizer), build("mlp", optimizer, mode="eager", policy=QUICK)
    data = data_of((1.0,) * 4)
    for each in (eager, step):
        run(each, data[:2])
        before = frozen(each, 0)
    with pytest.raises(RuntimeError, match=r"`requires_grad` of 2 .* call `recapture\(\)` after"):
        step.step(data[2])
    step.recapture()
    for each in (step, eager):
        run(each, data[2:])
    assert step.captured
    for old, new in zip(before, step._written.model[0].parameters(), strict=True):
        assert_same_bits(old, new)
    for a, b in zip(tensors_of(step), tensors_of(eager), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=1e-6)


def test_a_layer_that_was_frozen_from_the_start_is_trained_once_it_is_unfrozen():
    step = compiled()
    data = data_of((1.0,) * 4)
    before = frozen(step, 0)
    run(step, data[:2])
    assert step.captured
    frozen(step, 0, value=True)
    with pytest.raises(RuntimeError, match="after freezing or unfreezing"):
        step.step(data[2])
    step.recapture()
    run(step, data[2:])
    assert step.captured
    for old, new in zip(before, step._written.model[0].parameters(), strict=True):
        assert not torch.equal(old, new)


@pytest.mark.slow
def test_parameters_that_were_added_are_noticed():
    step = compiled()
    data = data_of((1.0,) * 4)
    run(step, data[:2])
    step._optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(RuntimeError, match=r"has 4 parameters, the optimizer now has 5\. Call"):
        step.step(data[2])
    step.recapture()
    run(step, data[2:])


@pytest.mark.slow
def test_a_run_with_a_frozen_layer_resumes_bit_for_bit():
    whole, first, second = (compiled() for _ in range(3))
    data = data_of()
    for step in (whole, first, second):
        frozen(step, 0)
    expected = run(whole, data)
    run(first, data[:3])
    second._written.model.load_state_dict(first._written.model.state_dict())
    second._optimizer.load_state_dict(first._optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    assert_same_traces(expected[3:], run(second, data[3:]))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda p: [torch.optim.SGD(p, lr=0.1)], TypeError, r"given a list, .*parameter groups"),
        (torch.optim.LBFGS, ValueError, r"LBFGS\(…\)\)`: its `step` needs a .*scaler\.step\(optim"),
        (lambda p: torch.optim.SGD([torch.ones(1)]), ValueError, "none of its parameters requires"),
        (
            lambda p: torch.optim.SGD(nn.Linear(4, 1).parameters()),
            ValueError,
            r"trains none of the model's parameters\. Build it from `model\.parameters\(\)`",
        ),
    ],
)
def test_an_optimizer_that_does_not_fit_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        linear(make, mode="eager")


def test_masters_belong_to_the_model_that_they_are_of():
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradscale.half_precision(model, optimizer)
    step = CapturedStep(
        model, lambda m, b: m(b).float().mean(), optimizer, mode="eager", policy=QUICK
    )
    before = model.weight.clone()
    step.step(torch.ones(2, 4))
    assert not torch.equal(before, model.weight)


@pytest.mark.parametrize(
    ("model", "loss_fn", "words"),
    [
        (
            [nn.Linear(4, 1)],
            lambda m, b: b,
            r"given a list.*`torch\.nn\.ModuleDict`",
        ),
        (nn.Linear(4, 1), 3, r"loss_fn=…\)` was given a int\. Pass a function"),
    ],
)
def test_what_is_no_model_or_no_function_is_refused(model, loss_fn, words):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    with pytest.raises(TypeError, match=words):
        CapturedStep(model, loss_fn, optimizer, mode="eager")


@pytest.mark.parametrize(
    ("loss_fn", "error", "words"),
    [
        (lambda m, b: (m(b).mean(), b), TypeError, r"returned a tuple, .*Return the loss alone"),
        (lambda m, b: m(b), ValueError, r"tensor of shape \(2, 1\), .*its mean or its sum"),
        (lambda m, b: m(b).mean().detach(), RuntimeError, r"depends on no .*without `detach\(\)`"),
    ],
)
def test_a_loss_from_which_no_backward_pass_can_start_is_refused(loss_fn, error, words):
    model = nn.Linear(4, 1)
    step = CapturedStep(model, loss_fn, torch.optim.SGD(model.parameters()), mode="eager")
    with pytest.raises(error, match=words):
        step.step(torch.ones(2, 4))


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_a_step_without_gradients_is_refused(without):
    step = linear(mode="eager")
    for call in (step.step, step.eager_step):
        with (
            without(),
            pytest.raises(RuntimeError, match=r"under `torch\.no_grad.* outside"),
        ):
            call(torch.ones(2, 4))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, r"'scaler', 'steps', 'trained', 'requires_grad' missing\. Pass what `CapturedStep\."),
        (None, "'scaler', .* missing"),
        (
            gradscale.GradScaler("cpu").state_dict(),
            r"of a scaler\. .*step\.scaler\.load",
        ),
    ],
)
def test_what_no_captured_step_saved_is_not_loaded(state, words):
    step = linear(mode="eager")
    with pytest.raises(ValueError, match=words):
        step.load_state_dict(state)


def test_the_state_of_a_step_with_other_parameters_is_not_loaded():
    other = build("mlp", "sgd", mode="eager")
    other.step(data_of()[0])
    step = linear(mode="eager")
    with pytest.raises(ValueError, match="with 4 parameters, this one has 2"):
        step.load_state_dict(other.state_dict())
    assert step.scaler.state_dict() == linear(mode="eager").scaler.state_dict()


@pytest.fixture
def one_rank():
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def sharded(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=init_device_mesh("cpu", (1,)))


@pytest.mark.parametrize("around", [lambda m: m, nn.Sequential])
@pytest.mark.parametrize(
    ("wrap", "name"),
    [(nn.parallel.DistributedDataParallel, "DistributedDataParallel"), (sharded, "`fully_shard`")],
)
def test_wrappers_of_torch_distributed_are_not_compiled(one_rank, wrap, name, around):
    needs_compiled_backward()
    model = around(wrap(nn.Linear(4, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=rf"{name} reduces gradients in hooks.*'cuda_graph'`, or"):
        CapturedStep(model, lambda m, b: m(b).mean(), optimizer, mode="compile")


@pytest.mark.parametrize("policy", [Dynamic(hysteresis=2), gradscale.LogNormal()])
def test_a_loaded_scaler_keeps_the_tensors_that_graphs_hold(policy):
    step = build("mlp", "momentum", mode="eager", policy=policy)
    run(step, data_of((1.0, HUGE)))
    held, saved = list(step.scaler._held.state), step.scaler.state_dict()
    values = [tensor.clone() for tensor in held]
    run(step, data_of((HUGE, 1.0)))
    step.scaler.load_state_dict(saved)
    for tensor, now, value in zip(held, step.scaler._held.state, values, strict=True):
        assert tensor is now
        assert_same_bits(tensor, value)
