"""Whoever else reads or writes gradients within a step: hooks, optimizers, a bare step."""

import warnings

import pytest
import torch

import gradscale
from gradscale import GradScaler, half_precision


def stepped(net, optimizer, **settings):
    first = net.weight.detach().clone()
    scaler = GradScaler("cpu", **settings)
    scaler.scale(net(torch.ones(8, 4)).square().mean()).backward()
    scaler.step(optimizer)
    scaler.update()
    return (net.weight - first).norm().item()


@pytest.mark.parametrize(
    ("fused", "settings"),
    [(False, {}), (True, {}), (False, {"undo": "optimizer"}), (False, {"sync_free": True})],
)
def test_a_step_hook_that_clips_finds_true_gradients(fused, settings):
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=fused)

    def clip(*_):
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.01)

    optimizer.register_step_pre_hook(clip)
    assert stepped(net, optimizer, **settings) == pytest.approx(8.944e-4, rel=1e-3)


def test_a_fused_optimizer_with_a_step_of_its_own_finds_true_gradients():
    seen = []

    class Looks(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["params"][0].grad.item())
            return super().step(closure)

    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer, scaler = Looks([parameter], lr=0.5, fused=True), GradScaler("cpu")
    scaler.scale((3 * parameter).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert seen == [3.0] and parameter.item() == -0.5


def test_an_optimizer_whose_step_takes_the_scaler_gets_it_as_from_torch():
    class Takes(torch.optim.SGD):
        def __init__(self, parameters):
            super().__init__(parameters, lr=0.5)
            self._step_supports_amp_scaling = True

        def step(self, closure=None, *, grad_scaler=None):
            assert not hasattr(self, "grad_scale") and not hasattr(self, "found_inf")
            grad_scaler.unscale_(self)
            flags = grad_scaler._found_inf_per_device(self).values()
            if not sum(flag.item() for flag in flags):
                super().step(closure)

    for kind in (GradScaler, torch.amp.GradScaler):
        parameter = torch.nn.Parameter(torch.ones(1))
        optimizer, scaler = Takes([parameter]), kind("cpu", init_scale=8.0)
        for factor in (3.0, float("inf")):
            optimizer.zero_grad()
            scaler.scale((factor * parameter).sum()).backward()
            with pytest.warns(FutureWarning, match=r"grad_scale.*found_inf"):
                scaler.step(optimizer)
            scaler.update()
        assert parameter.item() == -0.5


def bare_loop(scaler, net, optimizer):
    optimizer.zero_grad()
    scaler.scale(net(torch.ones(8, 4)).square().mean()).backward()
    optimizer.step()


@pytest.mark.parametrize("half", [False, True])
def test_a_step_past_the_scaler_is_warned_of(half):
    net = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-6)
    if half:
        half_precision(net, optimizer)
    scaler = GradScaler("cpu")
    with pytest.warns(UserWarning, match="65536 times too large") as caught:
        for _ in range(3):
            bare_loop(scaler, net, optimizer)
    assert len(caught) == 1


def test_right_loops_with_a_bare_step_are_left_alone():
    """A critic with a loss of its own, gradients divided by hand, `unscale_` and a bare step."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net, critic = torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)
        own, its = (torch.optim.SGD(m.parameters(), lr=1e-3) for m in (net, critic))
        scaler = GradScaler("cpu")
        scaler.scale(critic(net(torch.ones(2, 4))).mean()).backward()
        its.zero_grad()
        critic(torch.ones(2, 4)).mean().backward()
        its.step()
        scaler.step(own)
        scaler.update()
        its.zero_grad()

        scaler = GradScaler("cpu")
        scaler.scale(net(torch.ones(2, 4)).mean()).backward()
        for parameter in net.parameters():
            parameter.grad /= scaler.get_scale()
        own.step()

        scaler = GradScaler("cpu")
        own.zero_grad()
        scaler.scale(net(torch.ones(2, 4)).mean()).backward()
        scaler.unscale_(own)
        own.step()


def test_after_the_first_update_no_optimizer_is_looked_at_any_more():
    from torch.optim.optimizer import _global_optimizer_pre_hooks

    before = len(_global_optimizer_pre_hooks)
    net = torch.nn.Linear(4, 1)
    optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.1), GradScaler("cpu")
    scaler.scale(net(torch.ones(1, 4)).sum()).backward()
    assert len(_global_optimizer_pre_hooks) == before + 1
    scaler.step(optimizer)
    scaler.update()
    assert len(_global_optimizer_pre_hooks) == before


@pytest.mark.parametrize("device", [0, None])
def test_a_rank_and_none_are_devices_as_in_torch(device):
    scaler = GradScaler(device)
    assert scaler._device == device and scaler.is_enabled()


@pytest.mark.parametrize("call", ["step", "unscale_", "accumulate_"])
def test_what_is_no_optimizer_is_named(call):
    net = torch.nn.Linear(4, 1)
    optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.1), GradScaler("cpu")
    scaler.scale(net(torch.ones(1, 4)).sum()).backward()
    with pytest.raises(TypeError, match=r"scaler.step\(Linear\).*must be given an optimizer"):
        getattr(scaler, call)(net)
    with pytest.raises(TypeError, match="one at a time"):
        getattr(scaler, call)([optimizer])
    with pytest.raises(TypeError, match="the optimizer itself, and what it evaluates"):
        getattr(scaler, call)(optimizer.zero_grad)


def test_a_scaler_that_is_switched_off_answers_as_one_that_is_not():
    scaler = GradScaler(enabled=False, layerwise=True)
    assert str(scaler.layerwise.report()) == "nothing has been measured yet"
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    assert scaler.clip_grad_value_(optimizer, 1.0) is None


class Wrapper(torch.optim.Optimizer):
    """As many wrappers are written: it never calls `Optimizer.__init__`."""

    def __init__(self, inner):
        self.inner, self.param_groups, self.state = inner, inner.param_groups, inner.state
        self.defaults = inner.defaults

    def step(self, closure=None):
        return self.inner.step(closure)

    def zero_grad(self, set_to_none=True):
        self.inner.zero_grad(set_to_none)


@pytest.mark.parametrize("settings", [{}, {"sync_free": True}])
def test_wrappers_that_are_no_complete_optimizers_step(settings):
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = Wrapper(torch.optim.SGD([parameter], lr=0.25))
    scaler = GradScaler("cpu", **settings)
    for _ in range(3):
        optimizer.zero_grad()
        scaler.scale(parameter.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert parameter.item() == 0.25


def test_a_cast_in_mid_run_is_an_error():
    net = torch.nn.Linear(4, 1)
    optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.1), GradScaler("cpu")
    scaler.scale(net(torch.ones(1, 4)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    net.half()
    optimizer.zero_grad()
    scaler.scale(net(torch.ones(1, 4, dtype=torch.half)).float().sum()).backward()
    with pytest.raises(RuntimeError, match=r"trained float32 parameters, and they are .*float16"):
        scaler.step(optimizer)


def test_sums_that_survive_an_epoch_are_said_once():
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer, scaler = torch.optim.SGD([parameter], lr=0.1), GradScaler("cpu")
    with pytest.warns(UserWarning, match="6 micro-batches, after 4") as caught:
        for added in (4, 4, 6, 4, 4, 6):
            for _ in range(added):
                scaler.scale(parameter.sum()).backward()
                scaler.accumulate_(optimizer)
            scaler.step(optimizer)
            scaler.update()
    assert len(caught) == 1


def test_float16_weights_without_masters_are_named_once():
    weights = torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(3).half())
    optimizer, scaler = torch.optim.SGD(weights, lr=0.125), GradScaler("cpu")
    words = r"SGD trains float16 .* \(the first is parameter 1 of group 0, of shape \(3,\)\)"
    with pytest.warns(UserWarning, match=words) as heard:
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(sum(w.float().sum() for w in weights)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert len(heard) == 1
    # 2^16 is beyond float16: the first step is skipped.
    assert torch.equal(weights[1], torch.full((3,), 0.75).half())


def test_weights_in_bfloat16_or_under_masters_are_not_warned_of():
    for dtype in (torch.bfloat16, torch.float16):
        net = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        if dtype is torch.float16:
            gradscale.half_precision(net, optimizer)
        else:
            net.to(dtype)
        scaler = GradScaler("cpu")
        scaler.scale(net(torch.ones(1, 4, dtype=dtype)).float().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
