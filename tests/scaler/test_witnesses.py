"""Whether a loss that is not finite is the scale's fault: who bears witness, and who is tried."""

import math
import warnings

import pytest
import torch

import gradscale
from gradscale import GradScaler
from gradscale.scaler.patience import AFTER
from training_loops import START, broken_loop, penalty_loop

SETTINGS = {
    "plain": {},
    "sync_free": {"sync_free": True},
    "guarded": {"policy": gradscale.policies.Guarded(gradscale.Dynamic())},
    "two-sided": {"policy": gradscale.policies.TwoSided()},
    "layerwise": {"layerwise": True},
}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_loss_made_of_scaled_gradients_overflows_as_a_gradient_does(settings, accumulate, fused):
    scaler = GradScaler("cpu", **SETTINGS[settings])
    penalty_loop(scaler, fused=fused, accumulate=accumulate)
    counters = scaler.counters
    assert counters.skipped <= 2 and set(counters.reasons) <= {"overflow"}
    assert 0 < counters.steps - counters.skipped and scaler.get_scale() < START


def test_such_a_loop_is_torchs_bit_for_bit():
    ours, theirs = GradScaler("cpu"), torch.amp.GradScaler("cpu")
    for one, other in zip(penalty_loop(ours), penalty_loop(theirs), strict=True):
        assert torch.equal(one, other)
    assert ours.get_scale() == theirs.get_scale() == 2.0**15


def test_where_nothing_bears_witness_a_lower_scale_is_tried_and_kept_if_it_helps():
    scaler = GradScaler("cpu")
    with pytest.warns(UserWarning, match="20 steps in a row"):
        penalty_loop(scaler, steps=AFTER + 10, by_hand=True)
    assert scaler.get_scale() == 2.0**15
    # The trial itself, and the step after it, which shows that it was the scale.
    assert scaler.counters.skipped == AFTER + 1
    assert scaler.counters.consecutive == 0


@pytest.mark.parametrize("inner", [False, True])
def test_bad_data_for_ever_leaves_the_scale_where_it_was(inner):
    scaler = GradScaler("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scales = broken_loop(scaler, 300, inner=inner)
    assert scales[-1] == START and scaler.counters.skipped == 300
    if not inner:  # two trials of one step each
        assert sorted(set(scales)) == [1.0, START] and scales.count(1.0) == 2


def test_a_run_of_bad_batches_is_not_taken_for_a_loss_that_depends_on_the_scale():
    scaler = GradScaler("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scales = broken_loop(scaler, AFTER + 40, good=lambda step: step >= AFTER)
    assert scales[AFTER - 1] == 1.0 and set(scales[AFTER + 1 :]) == {START}
    assert scaler.counters.skipped == AFTER


def test_a_constant_scale_stays_constant_and_the_alarm_says_what_to_do():
    scaler = GradScaler("cpu", policy=gradscale.Static(4.0))
    with pytest.warns(UserWarning, match=r"`Static\(4\)` is a constant.*pass a lower one"):
        assert set(broken_loop(scaler, 100)) == {4.0}


def test_a_constant_scale_that_overflows_reaches_no_floor():
    scaler = GradScaler("cpu", policy=gradscale.Static(2.0**-3))
    heard = []
    scaler.on_alarm(heard.append)
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    with pytest.warns(UserWarning, match=r"for overflow.*`Static\(0.125\)` is a constant"):
        for _ in range(100):
            scaler.scale(parameter.sum()).backward()
            parameter.grad.fill_(math.inf)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert [alarm.in_a_row for alarm in heard] == [100]


def test_each_optimizer_is_judged_by_its_own_loss():
    """A NaN in loss A is no excuse for optimizer B's overflow."""
    a, b = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    first, second = (torch.optim.SGD([p], lr=0.1) for p in (a, b))
    scaler = GradScaler("cpu", init_scale=4.0)
    for loss in ((a * math.nan).sum(), (b * 3e38).sum()):
        scaler.scale(loss).backward()
    for optimizer in (first, second):
        scaler.step(optimizer)
    scaler.update()
    assert [outcome.reason for outcome in scaler.last_step] == ["nonfinite_loss", "overflow"]
    assert scaler.get_scale() == 2.0


def left_over_loop(scaler, fused, clear):
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, fused=fused)
    for step in range(12):
        x = torch.randn(8, 4)
        if step == 3:
            x[0, 0] = math.nan
        scaled = scaler.scale(net(x).square().mean())
        if clear:
            optimizer.zero_grad()
        scaled.backward()
        scaler.step(optimizer)
        scaler.update()
        if not scaler.last_step.skipped:
            optimizer.zero_grad()


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_that_nobody_cleared_are_named_and_not_the_scale(fused):
    scaler = GradScaler("cpu")
    words = r"its gradients \('weight', 'bias'\) were infinite .* had not been cleared"
    with pytest.warns(UserWarning, match=words) as caught:
        left_over_loop(scaler, fused, clear=False)
    assert len(caught) == 1 and scaler.get_scale() == START
    assert scaler.counters.reasons == {"nonfinite_loss": 1, "nonfinite_gradient": 8}


def test_gradients_cleared_between_scale_and_backward_are_no_evidence():
    scaler = GradScaler("cpu")
    left_over_loop(scaler, fused=False, clear=True)
    assert scaler.counters.reasons == {"nonfinite_loss": 1}


def test_dead_runs_are_said_to_be_dead_after_twenty_skips_and_each_ten_times_as_many():
    net = torch.nn.Linear(4, 1)
    net.weight.data[0, 0] = math.nan
    optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.01), GradScaler("cpu")
    heard = []
    scaler.on_alarm(heard.append)
    with pytest.warns(UserWarning, match=r"nonfinite_parameter. .* go back to a checkpoint"):
        for _ in range(201):
            optimizer.zero_grad()
            scaler.scale(net(torch.randn(8, 4)).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
    assert [(alarm.in_a_row, alarm.since) for alarm in heard] == [(20, 1), (200, 1)]
    assert {alarm.reason for alarm in heard} == {"nonfinite_parameter"}
    assert scaler.get_scale() == START


def test_an_alarm_can_stop_the_run():
    class Stop(Exception):
        pass

    def stop(alarm):
        raise Stop(alarm.message)

    scaler = GradScaler("cpu")
    scaler.on_alarm(stop)
    with pytest.raises(Stop, match="20 steps in a row"):
        broken_loop(scaler, 100)
    assert scaler.counters.updates == 20
    with pytest.raises(TypeError, match="on_alarm"):
        scaler.on_alarm(3)


def test_an_optimizer_that_dies_beside_a_healthy_one_is_heard():
    dead, alive = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizers = [torch.optim.SGD([p], lr=0.0) for p in (dead, alive)]
    scaler = GradScaler("cpu")
    heard = []
    scaler.on_alarm(heard.append)
    with pytest.warns(UserWarning, match="20 steps in a row"):
        for _ in range(20):
            for parameter, optimizer in zip((dead, alive), optimizers, strict=True):
                optimizer.zero_grad()
                factor = math.nan if parameter is dead else 1.0
                scaler.scale((parameter * factor).sum()).backward()
                scaler.step(optimizer)
            scaler.update()
    assert len(heard) == 1


def name_parameters(net, optimizer, scaler):
    scaler.name_parameters(net)


def watch(net, optimizer, scaler):
    gradscale.watch(net, scaler)


def half_precision(net, optimizer, scaler):
    gradscale.half_precision(net, optimizer)


@pytest.mark.parametrize("make_known", [name_parameters, watch, half_precision])
def test_a_buffer_that_a_skipped_step_has_poisoned_is_named_once(make_known):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1))
    optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.01), GradScaler("cpu")
    make_known(net, optimizer, scaler)
    with pytest.warns(UserWarning, match=r"'1.running_mean', '1.running_var'") as caught:
        for step in range(6):
            x = torch.randn(8, 4)
            if step in (2, 4):
                x[0, 0] = math.inf
            optimizer.zero_grad()
            scaler.scale(net(x).float().square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
    assert len(caught) == 1


def test_a_weight_beyond_float16_is_named_where_autocast_spoils_every_loss():
    net = torch.nn.Linear(2, 1)
    net.weight.data.fill_(1e5)
    optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.0), GradScaler("cpu")
    scaler.name_parameters(net)
    with pytest.warns(UserWarning, match=r"'weight' holds 100000, beyond float16's 65504"):
        for _ in range(20):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                out = net(torch.ones(1, 2))
            scaler.scale(out.float().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
