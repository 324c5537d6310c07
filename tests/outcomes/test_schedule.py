"""Schedules move only when the optimizer did."""

import math

import pytest
import torch
from torch.optim import lr_scheduler

from gradscale.scaler import GradScaler


def run(gradients, schedule, fused=False, **kwargs):
    """Learning rates after each step; torch's warning about the order would fail the test."""
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0, fused=fused)
    scheduler = schedule(optimizer)
    scaler = GradScaler("cpu")
    rates, moved = [], []
    for gradient in gradients:
        scaler.scale(torch.zeros(()))
        parameter.grad = torch.tensor([gradient])
        scaler.step(optimizer)
        scaler.update()
        moved.append(scaler.step_scheduler(scheduler, **kwargs))
        rates.append(optimizer.param_groups[0]["lr"])
    return rates, moved


@pytest.mark.parametrize("fused", [False, True])
def test_a_skipped_step_does_not_move_the_schedule(fused):
    def halve(optimizer):
        return lr_scheduler.ExponentialLR(optimizer, 0.5)

    rates, moved = run([math.inf, 1.0, math.nan, 1.0], halve, fused)
    assert rates == [1.0, 0.5, 0.5, 0.25] and moved == [False, True, False, True]


def test_what_step_takes_is_passed_on():
    def plateau(optimizer):
        return lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)

    rates, _ = run([1.0, 1.0], plateau, metrics=3.0)
    assert rates == [1.0, 0.5]


def test_anything_with_a_step_can_follow_an_optimizer():
    class Average:
        steps = 0

        def step(self):
            self.steps += 1

    (one, first), (two, second) = (
        (p, torch.optim.SGD([p], lr=1.0)) for p in (torch.nn.Parameter(torch.ones(1)) for _ in "ab")
    )
    scaler = GradScaler("cpu")
    scaler.scale(torch.zeros(()))
    one.grad, two.grad = torch.tensor([math.inf]), torch.ones(1)
    scaler.step(first)
    scaler.step(second)
    scaler.update()
    average = Average()
    assert not scaler.step_scheduler(average, optimizer=first)
    assert scaler.step_scheduler(average, optimizer=second)
    assert not scaler.step_scheduler(average) and average.steps == 1
    switched_off = GradScaler("cpu", enabled=False)
    assert switched_off.step_scheduler(average, optimizer=first) and average.steps == 2


def test_a_disabled_scaler_always_moves_it():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    optimizer.step()
    assert GradScaler("cpu", enabled=False).step_scheduler(scheduler)


def test_an_optimizer_is_no_follower_and_does_not_step_again():
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = GradScaler("cpu")
    scaler.scale(model(torch.ones(1, 2)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    before = [parameter.clone() for parameter in model.parameters()]
    for wrong in (optimizer, lambda: None):
        with pytest.raises(TypeError, match=r"`step_scheduler\(\w+\)` needs what follows an opt"):
            scaler.step_scheduler(wrong)
    assert all(map(torch.equal, before, model.parameters()))
