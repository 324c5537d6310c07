"""What is ours in `GradScaler`: host reads, settings, policies, devices, the order of a step."""

import gc
import math
import warnings
import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from assertions import assert_same_bits
from gradscale.layerwise import Layerwise
from gradscale.plans import Windows
from gradscale.policies.dynamic import Dynamic
from gradscale.policies.policy import Observation, Policy
from gradscale.policies.static import Static
from gradscale.scaler import GradScaler
from host_reads import HostReads

FUSED = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "adam": lambda p: torch.optim.Adam(p, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, fused=True),
}


def fake_step(build, *, unscale_first=False, steps=1, **settings):
    """A training step on a CUDA device that is not there: every host read raises."""
    parameters = [torch.nn.Parameter(torch.ones(3, device="cuda")) for _ in range(2)]
    optimizer = build(parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scaler = GradScaler("cuda", **settings)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.zeros((), device="cuda")
        scaler.scale(loss)
        for parameter in parameters:
            parameter.grad = torch.ones(3, device="cuda")
        if unscale_first:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    return scaler


@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_a_step_with_a_fused_optimizer_reads_nothing_on_the_host(name, unscale_first):
    with FakeTensorMode():
        scaler = fake_step(FUSED[name], unscale_first=unscale_first, steps=2)
        assert not scaler.last_step[next(iter(scaler.last_step))._optimizer()].settled


def test_a_step_with_an_unfused_optimizer_does_read():
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        fake_step(lambda p: torch.optim.SGD(p, lr=0.1))


def test_callbacks_do_not_make_it_read_and_counters_do():
    with FakeTensorMode():
        scaler = fake_step(FUSED["adam"], on_skip=print, steps=3)
        with pytest.raises(DataDependentOutputException):
            scaler.counters  # noqa: B018


def test_outcomes_that_nobody_reads_do_not_pile_up(monkeypatch):
    import gradscale.waiting_line

    monkeypatch.setattr(gradscale.waiting_line, "LONGEST_LINE", 2)
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        fake_step(FUSED["adam"], steps=3)


@pytest.mark.cuda
@pytest.mark.parametrize("name", FUSED)
def test_a_fused_step_never_waits_for_cuda(name):
    parameters = [torch.nn.Parameter(torch.ones(3, device="cuda")) for _ in range(2)]
    optimizer = FUSED[name](parameters)
    scaler = GradScaler("cuda", on_skip=lambda outcome: None)

    def step():
        scaler.scale(torch.zeros((), device="cuda"))
        for parameter in parameters:
            parameter.grad = torch.ones(3, device="cuda")
        scaler.step(optimizer)
        scaler.update()

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert scaler.counters.steps == 2


@pytest.mark.cuda
@pytest.mark.parametrize("gradient", [1.0, math.inf])
@pytest.mark.parametrize("name", FUSED)
def test_cuda_agrees_with_torch(name, gradient):
    results = []
    for Scaler in (torch.amp.GradScaler, GradScaler):
        parameter = torch.nn.Parameter(torch.ones(3, device="cuda"))
        optimizer = FUSED[name]([parameter])
        scaler = Scaler("cuda")
        for value in (1.0, gradient, 1.0):
            scaler.scale(torch.zeros((), device="cuda"))
            parameter.grad = torch.full_like(parameter, value)
            scaler.step(optimizer)
            scaler.update()
        results.append((parameter.detach(), scaler.get_scale()))
    assert_same_bits(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def sgd(value=1.0, **settings):
    parameter = torch.nn.Parameter(torch.full((2,), value))
    return parameter, torch.optim.SGD([parameter], lr=0.5, **settings)


def step_with(scaler, parameter, optimizer, gradient):
    scaler.scale(torch.zeros(()))
    parameter.grad = torch.full_like(parameter, gradient)
    scaler.step(optimizer)
    scaler.update()


def test_an_unfused_step_reads_as_much_as_torchs_and_the_scale():
    counts = []
    for Scaler in (torch.amp.GradScaler, GradScaler):
        parameter, optimizer = sgd()
        scaler = Scaler("cpu")
        step_with(scaler, parameter, optimizer, 1.0)
        with HostReads() as reads:
            step_with(scaler, parameter, optimizer, 1.0)
        counts.append(reads.count)
    # The scale is on the CPU here; on an accelerator flag and scale come in one transfer.
    assert counts[0] == 1 and counts[1] <= 3


def test_flag_and_scale_come_in_one_transfer():
    from gradscale.gradients.flags import read_together

    moved = []

    class Stacked(HostReads):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.stack.default:
                moved.append(len(args[0]))
            return super().__torch_dispatch__(func, types, args, kwargs)

    with FakeTensorMode(), Stacked(), pytest.raises(Exception):  # noqa: B017
        read_together([torch.zeros((), device="cuda")], torch.ones((), device="cuda"))
    assert moved == [2]


class Watcher(Policy):
    """Keeps what it was shown."""

    needs = frozenset({"amax", "exponents"})
    seen: list[Observation]

    def __init__(self):
        self.seen = []

    def init(self, shape=(), device="cpu"):
        return Static(4.0).init(shape, device)

    def update(self, state, observation):
        self.seen.append(observation)
        return state


@pytest.mark.parametrize("fused", [False, True])
def test_a_policy_is_shown_what_it_needs_of_the_unscaled_gradients(fused):
    policy = Watcher()
    parameter, optimizer = sgd(fused=fused)
    scaler = GradScaler("cpu", policy=policy)
    scaler.scale(torch.zeros(()))
    parameter.grad = torch.tensor([4.0, -12.0])
    scaler.step(optimizer)
    scaler.update()
    (observation,) = policy.seen
    assert observation.amax.item() == 3.0 and observation.found_inf.item() == 0.0
    assert int(observation.exponents.sum()) == 2
    assert parameter.tolist() == [0.5, 2.5] and scaler.last_step.observation is observation


def test_a_static_policy_never_moves_the_scale():
    parameter, optimizer = sgd()
    scaler = GradScaler("cpu", policy=Static(4.0))
    for gradient in (1.0, math.inf, 1.0):
        step_with(scaler, parameter, optimizer, gradient)
    assert scaler.get_scale() == 4.0 and scaler.counters.skipped == 1


def test_a_policy_and_numbers_beside_it_are_refused():
    with pytest.raises(ValueError, match=r"growth_interval=7.*same thing twice"):
        GradScaler("cpu", growth_interval=7, policy=Static(4.0))


def test_factors_that_round_gradients_are_warned_of():
    with pytest.warns(UserWarning, match=r"growth_factor=1\.5.*not a power of two"):
        GradScaler("cpu", growth_factor=1.5)


def test_the_setters_reach_the_policy():
    scaler = GradScaler("cpu")
    scaler.set_growth_factor(4.0)
    scaler.set_backoff_factor(0.25)
    scaler.set_growth_interval(9)
    assert scaler.policy == Dynamic(growth_factor=4.0, backoff_factor=0.25, growth_interval=9)
    scaler._growth_interval = 11
    assert scaler.get_growth_interval() == 11


def test_a_policy_without_the_setting_says_so():
    with pytest.raises(ValueError, match="has no `growth_factor`"):
        GradScaler("cpu", policy=Static(4.0)).set_growth_factor(4.0)


@pytest.mark.parametrize("scale", [0, -1.0, math.nan, math.inf, 2.0**-127])
def test_an_unusable_new_scale_is_refused(scale):
    parameter, optimizer = sgd()
    scaler = GradScaler("cpu")
    step_with(scaler, parameter, optimizer, 1.0)
    with pytest.raises(ValueError, match="finite number of at least"):
        scaler.update(scale)


def test_a_new_scale_may_be_a_tensor():
    scaler = GradScaler("cpu")
    scaler.scale(torch.zeros(()))
    scaler.update(torch.tensor([4.0]))
    assert scaler.get_scale() == 4.0
    with pytest.raises(AssertionError, match="one element"):
        scaler.update(torch.ones(2))


def test_unscaling_divides_exactly_at_the_largest_and_the_smallest_scale():
    for scale in (2.0**127, 2.0**-126):
        parameter, optimizer = sgd()
        scaler = GradScaler("cpu", init_scale=scale)
        scaler.scale(torch.zeros(()))
        parameter.grad = torch.full((2,), scale)
        scaler.unscale_(optimizer)
        assert parameter.grad.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("new_scale", [None, 4.0])
def test_the_gradients_and_inputs_of_a_step_are_let_go(new_scale):
    class Batch(torch.Tensor):
        pass

    parameter, optimizer = sgd()
    scaler = GradScaler("cpu")
    batch = torch.ones(2).as_subclass(Batch)
    alive = weakref.ref(batch)
    scaler.scale((parameter * 1).sum(), inputs=batch).backward()
    del batch
    scaler.step(optimizer)
    scaler.update(new_scale)
    gc.collect()
    assert alive() is None


def test_tensors_put_in_the_place_of_torchs_are_those_that_the_policy_moves():
    parameter, optimizer = sgd()
    scaler = GradScaler("cpu", growth_interval=3)
    scaler.scale((parameter * 1).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    scaler._scale, scaler._growth_tracker = torch.tensor(8.0), torch.tensor(2, dtype=torch.int32)
    scale = scaler._scale
    parameter.grad = None
    scaler.scale((parameter * 1).sum()).backward()
    assert parameter.grad.tolist() == [8.0, 8.0]
    scaler.step(optimizer)
    scaler.update()
    assert scale.item() == 16.0 and scaler._growth_tracker.item() == 0


def test_an_optimizer_with_its_own_grad_scale_keeps_it():
    parameter, optimizer = sgd(fused=True)
    scaler = GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))
    parameter.grad = torch.full((2,), 8.0)
    optimizer.grad_scale = torch.tensor(2.0)
    scaler.step(optimizer)
    assert parameter.tolist() == [0.5, 0.5] and not hasattr(optimizer, "grad_scale")


@pytest.mark.parametrize("shared", [False, True])
def test_an_inf_in_a_shared_parameter_stops_both_optimizers(shared):
    one, first = sgd()
    two = torch.nn.Parameter(torch.ones(2))
    second = torch.optim.SGD([two, one] if shared else [two], lr=0.5)
    scaler = GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))
    one.grad = torch.full((2,), math.inf)
    two.grad = torch.full((2,), 4.0)
    scaler.step(first)
    scaler.step(second)
    assert scaler.last_step[first].skipped
    assert scaler.last_step[second].skipped is shared


def test_deep_copies_and_layerwise_are_independent_of_the_original():
    import copy

    parameter, optimizer = sgd()
    scaler = GradScaler("cpu", init_scale=4.0)
    step_with(scaler, parameter, optimizer, math.inf)
    twin = copy.deepcopy(scaler)
    step_with(scaler, parameter, optimizer, math.inf)
    assert (twin.get_scale(), scaler.get_scale()) == (2.0, 1.0)
    assert twin.counters.skipped == 1 and scaler.counters.skipped == 2


def test_several_flags_make_one_and_never_their_sum():
    from gradscale.gradients.flags import combined

    zero, one = torch.zeros(()), torch.ones(())
    device = torch.device("cpu")
    assert [combined(f, device).item() for f in ([zero, one], [one, one], [zero])] == [1, 1, 0]


@pytest.mark.parametrize("name", ["scale", "unscale_", "step", "update"])
def test_the_compiler_is_told_to_leave_the_method_alone(name):
    assert getattr(GradScaler, name)._torchdynamo_disable


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"policy": Dynamic}, TypeError, r"pass an instance, `policy=Dynamic\(\)`"),
        ({"policy": "dynamic"}, TypeError, "must be a policy. Pass one such as"),
        ({"on_skip": "x"}, TypeError, "must be a function of an OptimizerOutcome"),
        (
            {"layerwise": Windows},
            TypeError,
            "is a class. Pass an instance",
        ),
        ({"growth_interval": 2.5}, TypeError, r"`GradScaler\(growth_interval=2.5\)`"),
    ],
)
def test_what_the_constructor_takes_is_checked_at_once(arguments, error, message):
    with pytest.raises(error, match=message):
        GradScaler("cpu", **arguments)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0, 0.0])
def test_a_tensor_that_is_no_scale_is_refused(scale):
    scaler = GradScaler("cpu")
    scaler.scale(torch.ones((), requires_grad=True))
    with pytest.raises(ValueError, match="must be a finite number of at least 2"):
        scaler.update(torch.tensor(scale))
    assert scaler.get_scale() == 2.0**16


def test_a_layerwise_belongs_to_one_scaler():
    layerwise = Layerwise()
    GradScaler("cpu", layerwise=layerwise)
    with pytest.raises(ValueError, match="belongs to another scaler"):
        GradScaler("cpu", layerwise=layerwise)


def test_a_scaler_prints_its_policy():
    assert (
        repr(GradScaler("cpu", policy=Static(8.0))) == "GradScaler('cpu', policy=Static(scale=8.0))"
    )


def test_a_gradient_that_two_optimizers_share_is_brought_to_a_scale_once():
    parameter = torch.nn.Parameter(torch.zeros(1))
    first, second = (torch.optim.SGD([parameter], lr=0.0) for _ in range(2))
    scaler = GradScaler("cpu", init_scale=8.0)
    for _ in range(2):
        scaler.scale(parameter.sum()).backward()
        scaler.step(first)
        scaler.step(second)
        scaler.update()
    assert parameter.grad.item() == 2.0


@pytest.mark.parametrize("way", ["plain", "sync_free", "fused"])
def test_a_quotient_that_its_dtype_cannot_hold_is_no_fault_of_the_scale(way):
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float16))
    fused = way == "fused"
    optimizer = torch.optim.SGD([parameter], lr=1e-4, foreach=not fused, fused=fused)
    scaler = GradScaler("cpu", init_scale=2.0**-4, sync_free=way == "sync_free")
    for gradient in (1.0, 1.0, 3e4):
        scaler.scale(torch.zeros(()))
        parameter.grad = torch.full((1,), gradient, dtype=torch.float16)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    assert scaler.last_step.skipped and scaler.get_scale() == 2.0**-4
