"""Gradients that outlive `update()` add up as if there had been no scale."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscale.scaler import GradScaler


def build(kind, parameters):
    if kind == "fused":
        return torch.optim.SGD(parameters, lr=0.0, fused=True)
    return torch.optim.SGD(parameters, lr=0.0)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["plain", "fused"]),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["keep", "none", "zero"]), st.sampled_from(["step", "unscale", "wait"])
        ),
        min_size=1,
        max_size=8,
    ),
)
def test_sums_of_gradients_do_not_depend_on_the_scale(kind, steps):
    one, two = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    watched, other = build(kind, [one]), build("plain", [two])
    scaler = GradScaler("cpu", init_scale=4.0, growth_interval=1)
    expected = 0.0
    scaler.scale(torch.zeros(()))
    scaler.step(watched)
    scaler.update()
    for clear, act in steps:
        if clear != "keep":
            watched.zero_grad(set_to_none=clear == "none")
            expected = 0.0
        other.zero_grad()
        scaler.scale(one.sum() + two.sum()).backward()
        expected += 1.0
        if act == "step":
            scaler.step(watched)
        elif act == "unscale":
            scaler.unscale_(watched)
        scaler.step(other)
        scaler.update()
    scaler.scale(torch.zeros(()))
    scaler.unscale_(watched)
    assert one.grad.tolist() == [expected] * 2


def test_a_second_update_changes_nothing_about_what_was_left():
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = build("plain", [parameter])
    scaler = GradScaler("cpu", init_scale=4.0)
    scaler.scale(parameter.sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    scaler.update(64.0)
    scaler.scale(parameter.sum()).backward()
    scaler.unscale_(optimizer)
    assert parameter.grad.item() == 2.0


@pytest.mark.parametrize("kind", ["plain", "fused"])
def test_a_skipped_step_leaves_its_finite_gradients_right(kind):
    one, two = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = build(kind, [one, two])
    scaler = GradScaler("cpu", init_scale=4.0)
    scaler.scale(one.sum() + two.sum()).backward()
    two.grad.fill_(math.inf)
    scaler.step(optimizer)
    scaler.update()
    two.grad = None
    scaler.scale(one.sum() + two.sum()).backward()
    scaler.unscale_(optimizer)
    assert (one.grad.item(), two.grad.item()) == (2.0, 1.0)


def test_an_optimizer_that_is_gone_is_forgotten():
    scaler = GradScaler("cpu")
    for _ in range(3):
        parameter = torch.nn.Parameter(torch.ones(1))
        optimizer = build("plain", [parameter])
        scaler.scale(parameter.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        del optimizer
    scaler.scale(torch.zeros(()))
    assert len(scaler._step.pending._optimizers) <= 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64])
def test_other_dtypes_are_brought_along(dtype):
    parameter = torch.nn.Parameter(torch.ones(1, dtype=dtype))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    scaler = GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))
    parameter.grad = torch.full_like(parameter, 4.0)
    scaler.step(optimizer)
    scaler.update()
    scaler.scale(torch.zeros(()))
    assert parameter.grad.item() == 4.0
