"""A lower scale is tried where the device decides alone: as by the host, and nothing is read."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

import gradscale
from gradscale import GradScaler
from gradscale.outcomes.evidence import Blame
from gradscale.scaler.device_patience import DevicePatience
from gradscale.scaler.patience import AFTER
from training_loops import START, broken_loop, penalty_loop

NAN = "nan"  # a loss that no scale helps
HIGH = 2.0**12
"""In a loop whose loss depends on the scale it is finite up to here."""


class ByHand:
    """The rule in plain Python, on plain numbers: one step after the other."""

    def __init__(self):
        self.row, self.first, self.return_to = 0, 0.0, 0.0
        self.trial, self.depends, self.steps = False, -1, 0

    def hear(self, skipped, bad, suspected, at, scale):
        self.steps += 1
        self.row = self.row + 1 if bad else 0
        if self.row == 1:
            self.first = at
        if not skipped and self.depends == 0:
            self.depends = -1
        phase = self.steps % AFTER
        if phase == 0:
            due = any(n <= self.row < n + AFTER for n in (24, 240, 2400, 24000))
            self.trial = due and self.first > 1
            self.return_to = scale if suspected else self.first
            return 1.0 if self.trial else scale
        if phase == 1 and self.trial:
            if bad:
                self.trial, self.depends = False, 0
                return self.first
            self.trial = self.return_to >= self.first
            return self.return_to
        if phase == 2 and self.trial and bad:
            self.depends = 1
            return max(1.0, self.first / 2)
        return scale


@given(
    stretches=st.lists(
        st.tuples(
            st.sampled_from(["good", NAN, "high", "other"]), st.integers(1, 60), st.booleans()
        ),
        max_size=12,
    )
)
@settings(max_examples=60, deadline=None)
def test_the_device_does_what_the_rule_says(stretches):
    scale, expected = torch.tensor(START), START
    device, rule = DevicePatience(scale), ByHand()
    for kind, length, suspected in stretches:
        for _ in range(length):
            bad = kind == NAN or (kind == "high" and expected > HIGH)
            skipped = bad or kind == "other"
            overflow = bad and suspected
            blame = Blame(torch.tensor(float(overflow)), torch.tensor(float(bad)))
            device.count(torch.tensor(float(skipped)), blame, scale)
            at, expected = expected, expected * (0.5 if overflow else 1.0)
            scale.fill_(expected)
            device.act(scale, 1.0, 0.5)
            expected = rule.hear(skipped, bad, overflow, at, expected)
            assert (scale.item(), device.depends.item()) == (expected, rule.depends)


def test_a_loss_that_depends_on_the_scale_lowers_it_without_a_host_read_too():
    scaler = GradScaler("cpu", sync_free=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the alarm
        penalty_loop(scaler, steps=3 * AFTER, by_hand=True)
    assert scaler.get_scale() == 2.0**15
    assert 0 < scaler.counters.consecutive + scaler.counters.skipped <= 2 * AFTER + 2


@pytest.mark.parametrize("inner", [False, True])
def test_bad_data_for_ever_leaves_the_scale_where_it_was(inner):
    scaler = GradScaler("cpu", sync_free=True)
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.0)

    def step(factor):
        optimizer.zero_grad()
        if inner:
            scaled = scaler.scale(parameter.square().sum())
            torch.autograd.grad(scaled, parameter, create_graph=True)
        scaler.scale((parameter * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        return scaler.get_scale()

    step(1.0)  # the first one, which the host decides
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scales = [step(math.nan) for _ in range(12 * AFTER)]
    assert scales[-1] == START and 1.0 in scales
    if not inner:
        assert sorted(set(scales)) == [1.0, START] and scales.count(1.0) == 2
    assert step(1.0) == START
    assert not scaler.last_step.skipped


def test_where_no_step_was_ever_taken_the_host_decides_and_is_patient():
    """sync_free lets the host decide until an optimizer has made its state."""
    scaler = GradScaler("cpu", sync_free=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scales = broken_loop(scaler, AFTER + 2)
    assert scales[AFTER - 1 :] == [1.0, START, START]


def test_a_constant_stays_constant_on_the_device_too():
    scaler = GradScaler("cpu", sync_free=True, policy=gradscale.Static(4.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert set(broken_loop(scaler, 100, good=lambda step: step == 0)) == {4.0}


def test_a_scaler_that_waits_for_nobody_is_patient_without_a_host_read():
    scaler = GradScaler("cpu", sync_free=True)
    scaler._device = "cuda"
    with FakeTensorMode():
        parameter = torch.nn.Parameter(torch.ones(2, device="cuda"))
        optimizer = torch.optim.SGD([parameter], lr=0.1, foreach=True)
        optimizer.__dict__["_gradscale_taken"] = {id(parameter)}  # as after a first step
        for _ in range(AFTER + 6):  # a trial and its end; a longer line waits for the device
            scaler.scale(torch.zeros((), device="cuda"))
            parameter.grad = torch.ones(2, device="cuda")
            scaler.step(optimizer)
            scaler.update()
        assert not next(iter(scaler.last_step)).settled
        assert scaler._books.device_patience is not None


def two_on_the_device(values, order=(0, 1)):
    """Two optimizers, each with a loss of its own, whose steps the device decides."""
    a, b = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizers = [torch.optim.SGD([p], lr=0.0) for p in (a, b)]
    scaler = GradScaler("cpu", init_scale=4.0, sync_free=True)
    for factors in ((1.0, 1.0), values):
        for optimizer in optimizers:
            optimizer.zero_grad()
        for place in order:
            scaler.scale(((a, b)[place] * factors[place]).sum()).backward()
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()
    return scaler, optimizers


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize(
    ("values", "reasons", "scale"),
    [
        ((math.nan, 3e38), ["nonfinite_loss", "overflow"], 2.0),
        ((3e38, math.nan), ["overflow", "nonfinite_loss"], 2.0),
        ((math.nan, 1.0), ["nonfinite_loss", None], 4.0),
        ((3e38, 1.0), ["overflow", None], 2.0),
    ],
)
def test_each_optimizer_is_judged_by_its_own_loss_on_the_device(values, reasons, scale, order):
    scaler, _optimizers = two_on_the_device(values, order)
    assert not any(outcome.settled for outcome in scaler.last_step)
    assert scaler.get_scale() == scale
    assert [outcome.reason for outcome in scaler.last_step] == reasons


def test_left_over_gradients_do_not_lower_the_scale_that_the_device_decides():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    scaler = GradScaler("cpu", init_scale=4.0, sync_free=True)
    for factor in (1.0, math.nan, 1.0, 1.0):  # nobody clears
        scaler.scale((parameter * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.last_step.reason == "nonfinite_gradient" and scaler.get_scale() == 4.0


@pytest.mark.cuda
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("values", [(math.nan, 3e38), (3e38, math.nan)])
def test_fused_optimizers_on_an_accelerator_are_judged_one_by_one(values, order):
    pair = [torch.nn.Parameter(torch.ones(1, device="cuda")) for _ in range(2)]
    optimizers = [torch.optim.Adam([p], fused=True) for p in pair]
    scaler = GradScaler("cuda", init_scale=4.0)
    for place in order:
        scaler.scale((pair[place] * values[place]).sum()).backward()
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0
    found = ["nonfinite_loss" if math.isnan(value) else "overflow" for value in values]
    assert [outcome.reason for outcome in scaler.last_step] == found
