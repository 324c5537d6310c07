"""A step that the device skips leaves no trace, and reads nothing on the host."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from assertions import assert_same_bits
from gradscale import GradScaler
from gradscale.undo.select import mark_taken, prepared, selected

BUILDERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
    "adam": lambda p: torch.optim.Adam(p, amsgrad=True),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "nadam": lambda p: torch.optim.NAdam(p),
    "adagrad": lambda p: torch.optim.Adagrad(p),
    "rmsprop": lambda p: torch.optim.RMSprop(p, centered=True, momentum=0.5),
    "rprop": lambda p: torch.optim.Rprop(p),
    "asgd": lambda p: torch.optim.ASGD(p),
    "adadelta": lambda p: torch.optim.Adadelta(p),
}


def train(build, gradients, **arguments):
    parameters = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))]
    optimizer = build(parameters)
    scaler = GradScaler("cpu", init_scale=2.0**20, growth_interval=2, **arguments)
    trajectory = []
    for gradient in gradients:
        scaler.scale(torch.zeros(()))
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, gradient)
        scaler.step(optimizer)
        scaler.update()
        values = [p.detach().clone() for p in parameters]
        for state in optimizer.state.values():
            values += [v.clone() for v in state.values() if isinstance(v, torch.Tensor)]
        trajectory.append([*values, scaler._scale.clone()])
    return trajectory, scaler


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(sorted(BUILDERS)),
    gradients=st.lists(
        st.sampled_from([1.0, -0.5, 3.0, math.inf, math.nan]), min_size=1, max_size=8
    ),
)
def test_the_device_decides_as_the_host_does(name, gradients):
    host, one = train(BUILDERS[name], gradients)
    device, two = train(BUILDERS[name], gradients, sync_free=True)
    for a, b in zip(host, device, strict=True):
        for x, y in zip(a, b, strict=True):
            assert_same_bits(x, y)
    assert one.counters == two.counters


def test_the_outcome_is_read_only_when_asked_for():
    _, scaler = train(BUILDERS["adam"], [1.0, 1.0, math.inf], sync_free=True)
    assert not next(iter(scaler.last_step)).settled
    assert scaler.last_step.skipped and scaler.counters.skipped == 1


@pytest.mark.parametrize("name", ["sgd", "sgd-momentum", "rmsprop"])
def test_nothing_of_a_step_is_read_once_the_state_is_there(name):
    """On a device that is not there: reading a tensor of it raises."""
    build = {
        "sgd": BUILDERS["sgd"],
        "sgd-momentum": BUILDERS["sgd-momentum"],
        "rmsprop": lambda p: torch.optim.RMSprop(p, capturable=True),
    }[name]
    with FakeTensorMode():
        parameter = torch.nn.Parameter(torch.ones(3, device="cuda"))
        parameter.grad = torch.ones(3, device="cuda")
        optimizer = build([parameter])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scaler = GradScaler("cuda", sync_free=True)
        scaler.scale(torch.zeros((), device="cuda"))
        with pytest.raises(DataDependentOutputException):
            scaler.step(optimizer)
        scaler.update()
        # The first step, as if the flag had been read.
        optimizer.step()
        mark_taken(optimizer)
        for _ in range(2):
            scaler.scale(torch.zeros((), device="cuda"))
            parameter.grad = torch.ones(3, device="cuda")
            scaler.step(optimizer)
            scaler.update()


def test_a_step_counter_on_the_host_cannot_be_taken_back():
    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for group in self.param_groups:
                group["k"] = group.get("k", 0) + 1

    parameter = torch.nn.Parameter(torch.ones(1))
    parameter.grad = torch.ones(1)
    optimizer = Counting([parameter], lr=0.1)
    with (
        pytest.raises(ValueError, match=r"Counting counts on the host.*sync_free=False"),
        selected(optimizer, torch.zeros(())),
    ):
        optimizer.step()


class Replacing(torch.optim.SGD):
    """Momentum in a new tensor every step, and a base class whose `step` runs inside its own."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                momentum = self.state[parameter].get("m", torch.zeros_like(parameter))
                self.state[parameter]["m"] = momentum = 0.5 * momentum + parameter.grad
                parameter.data = parameter.data - momentum
        return super().step(closure)


def test_tensors_that_a_step_replaces_are_taken_back():
    results = []
    for sync_free in (False, True):
        parameter = torch.nn.Parameter(torch.ones(2))
        optimizer = Replacing([parameter], lr=0.1)
        scaler = GradScaler("cpu", sync_free=sync_free)
        for gradient in (1.0, math.inf, 2.0):
            scaler.scale(torch.zeros(()))
            parameter.grad = torch.full_like(parameter, gradient)
            scaler.step(optimizer)
            scaler.update()
        results.append((parameter.detach(), optimizer.state[parameter]["m"]))
    for host, device in zip(*results, strict=True):
        assert_same_bits(host, device)


def test_state_that_a_skipped_step_makes_is_taken_back():
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.0)
    scaler = GradScaler("cpu", init_scale=1.0, sync_free=True)
    for gradient, momentum in ((1.0, 0.0), (math.inf, 0.9), (1.0, 0.9)):
        optimizer.param_groups[0]["momentum"] = momentum
        scaler.scale(torch.zeros(()))
        parameter.grad = torch.full((1,), gradient * scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()
        if gradient == math.inf:
            assert not optimizer.state[parameter]
    assert optimizer.state[parameter]["momentum_buffer"].item() == 1.0


def test_hooks_after_a_step_find_what_the_device_has_decided():
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    seen = []
    optimizer.register_step_post_hook(lambda *_: (seen.append(parameter.item()), schedule.step()))
    scaler = GradScaler("cpu", init_scale=1.0, sync_free=True)
    for gradient in (1.0, math.nan):
        scaler.scale(torch.zeros(()))
        parameter.grad = torch.full((1,), gradient)
        scaler.step(optimizer)
        scaler.update()
    assert seen == [0.5, 0.5]


def test_state_on_another_device_is_refused_with_the_way_out():
    with FakeTensorMode():
        parameter = torch.nn.Parameter(torch.ones(1, device="cuda"))
        parameter.grad = torch.ones(1, device="cuda")
        optimizer = torch.optim.Adam([parameter])
        optimizer.state[parameter] = {"step": torch.zeros(()), "exp_avg": parameter.detach()}
        with (
            pytest.raises(ValueError, match=r"Adam keeps `step` on cpu.*`capturable=True`"),
            selected(optimizer, torch.zeros((), device="cuda")),
        ):
            pass


def test_the_first_step_is_the_hosts():
    parameter = torch.nn.Parameter(torch.ones(1))
    parameter.grad = torch.ones(1)
    optimizer = torch.optim.Adam([parameter])
    assert not prepared(optimizer)
    optimizer.step()
    assert prepared(optimizer)


@pytest.mark.cuda
@pytest.mark.parametrize("build", [torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam])
def test_cuda_never_waits(build):
    parameter = torch.nn.Parameter(torch.ones(3, device="cuda"))
    optimizer = build([parameter], capturable=True)
    scaler = GradScaler("cuda", sync_free=True)

    def step(gradient):
        scaler.scale(torch.zeros((), device="cuda"))
        parameter.grad = torch.full((3,), gradient, device="cuda")
        scaler.step(optimizer)
        scaler.update()

    step(1.0)
    before = parameter.detach().clone()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(math.inf)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same_bits(parameter.detach(), before)
    assert scaler.counters.skipped == 1
