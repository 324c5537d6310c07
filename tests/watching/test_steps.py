"""A step is told by the optimizer, and by the gradients where the optimizer is skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

import gradscale
from gradscale.layerwise.calendar import Calendar
from gradscale.watching.steps import Steps


class Loop:
    """A model, its optimizer and the steps that are told of them."""

    def __init__(self, every: int = 1) -> None:
        self.model = nn.Linear(2, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.stepped = 0
        self.steps = Steps(self.model, Calendar(every), self.count, lambda: False)

    def count(self) -> None:
        self.stepped += 1

    def backward(self, factor: float = 1.0) -> None:
        self.steps.begin_pass()
        (self.model(torch.ones(1, 2)).sum() * factor).backward()
        self.steps.end_pass()


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    loop.steps.start()
    yield loop
    loop.steps.stop()


def test_passes_up_to_an_optimizer_step_belong_together(loop: Loop) -> None:
    seen: list[int] = []
    for _ in range(3):
        for _ in range(2):
            loop.backward()
            seen.append(loop.steps.step)
        loop.optimizer.step()
        loop.optimizer.zero_grad()
    assert seen == [0, 0, 1, 1, 2, 2] and loop.stepped == 3


SKIPS: dict[str, Callable[[Loop], object]] = {
    "gradients set to None": lambda loop: loop.optimizer.zero_grad(set_to_none=True),
    "gradients set to zero": lambda loop: loop.optimizer.zero_grad(set_to_none=False),
    "gradients divided": lambda loop: torch._foreach_div_([loop.model.weight.grad], 2.0),
    "gradients replaced": lambda loop: setattr(loop.model.weight, "grad", torch.ones(1, 2)),
}


@pytest.mark.parametrize("how", SKIPS)
def test_a_skipped_step_ends_a_step_too(loop: Loop, how: str) -> None:
    loop.backward()
    SKIPS[how](loop)
    loop.backward()
    assert (loop.steps.step, loop.stepped) == (1, 0)


@pytest.mark.parametrize("make", [torch.amp.GradScaler, gradscale.GradScaler])
@pytest.mark.parametrize("to_none", [False, True])
def test_steps_that_a_scaler_skips_are_counted(make: type, to_none: bool) -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = make("cpu", init_scale=2.0**4)
    seen: list[int] = []
    with gradscale.watch(model, scaler, every=1) as watch:
        for step in range(5):
            optimizer.zero_grad(set_to_none=to_none)
            for _ in range(2):
                loss = model(torch.ones(1, 2)).sum() * (float("inf") if step in (1, 2) else 1.0)
                scaler.scale(loss).backward()
                seen.append(watch.step)
            scaler.step(optimizer)
            scaler.update()
    assert seen == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert watch.report().steps == (0, 1, 2, 3, 4)


def test_another_model_s_optimizer_ends_nothing(loop: Loop) -> None:
    other = nn.Linear(2, 1)
    theirs = torch.optim.SGD(other.parameters(), lr=0.1)
    loop.backward()
    other(torch.ones(1, 2)).sum().backward()
    theirs.step()
    loop.backward()
    assert (loop.steps.step, loop.stepped) == (0, 0)


def test_passes_of_another_model_in_between_do_not_count_twice(loop: Loop) -> None:
    other = nn.Linear(2, 1)
    seen: list[int] = []
    for _ in range(3):
        loop.optimizer.zero_grad()
        loop.steps.begin_pass()
        other(torch.ones(1, 2)).sum().backward()
        loop.steps.end_pass()
        loop.backward()
        loop.optimizer.step()
        seen.append(loop.steps.step)
    assert seen == [0, 1, 2]


def test_it_measures_as_the_calendar_says_and_when_it_is_asked() -> None:
    loop = Loop(every=10)
    loop.steps.start()
    measured: list[int] = []
    for step in range(32):
        loop.optimizer.zero_grad()
        expected = loop.steps.will_measure
        if step == 12:
            loop.steps.again = expected = True
        loop.backward()
        assert loop.steps.measures == expected == loop.steps.will_measure
        if loop.steps.measures:
            measured.append(step)
        loop.optimizer.step()
    loop.steps.stop()
    assert measured == [0, 1, 2, 4, 8, 10, 12, 20, 30]


def test_optimizers_are_looked_at_inside_the_block_only() -> None:
    loop = Loop()
    loop.steps.start()
    loop.steps.stop()
    loop.backward()
    loop.optimizer.step()
    assert loop.stepped == 0


def test_an_optimizer_that_steps_inside_the_backward_pass_ends_the_step_after_it() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))

    def step(parameter: torch.Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    with gradscale.watch(model, every=1) as watch:
        for _ in range(3):
            model(torch.ones(1, 2)).sum().backward()
    report = watch.report()
    assert report.steps == (0, 1, 2)
    assert {row.numel for row in report.of(name="0.weight")} == {12}


@pytest.mark.parametrize("bad", [False, True])
def test_micro_batches_that_are_summed_are_one_step(bad: bool) -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = gradscale.GradScaler("cpu", init_scale=4.0)
    measured: list[int] = []
    with gradscale.watch(model, scaler, every=1) as watching:
        watching.on_measured(lambda step, rows: measured.append(step))
        for step in range(4):
            for batch in range(3):
                value = torch.inf if bad and step == 1 and batch == 1 else 1.0
                scaler.scale(model(torch.full((2, 2), value)).mean()).backward()
                scaler.accumulate_(optimizer, drop_overflow=True)
                assert watching.step == step
            scaler.step(optimizer)
            scaler.update()
    assert measured == [0, 1, 2, 3]
