"""Steps that are begun and given up: by an exception, or because a batch is dropped."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradscale import GradScaler, half_precision

S = 256.0
KINDS = {
    "foreach": lambda p: torch.optim.SGD(p, lr=0.5),
    "fused": lambda p: torch.optim.SGD(p, lr=0.5, fused=True),
}


def linear():
    model = torch.nn.Linear(2, 1, bias=False)
    model.weight.data.fill_(1.0)
    return model


def backward(scaler, model, factor=1.0):
    loss = factor * model(torch.ones(1, 2)).sum()
    scaler.scale(loss).backward()


BEGIN = {
    "unscale_": lambda scaler, optimizer: scaler.unscale_(optimizer),
    "norm": lambda scaler, optimizer: scaler.clip_grad_norm_(optimizer, 1e6),
    "value": lambda scaler, optimizer: scaler.clip_grad_value_(optimizer, 1e6),
}


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("undo", ["gradient", "learning_rate"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("begin", BEGIN)
def test_a_dropped_batch_leaves_no_trace(begin, kind, undo, half):
    model = linear()
    optimizer = KINDS[kind](model.parameters())
    if half:
        half_precision(model, optimizer)
    scaler = GradScaler("cpu", init_scale=S, undo=undo)
    for dropped in (True, False):
        optimizer.zero_grad()
        backward(scaler, model)
        norm = BEGIN[begin](scaler, optimizer)
        if norm is not None:
            assert norm.item() == pytest.approx(math.sqrt(2))
        if not dropped:
            scaler.step(optimizer)
            scaler.update()
    assert model.weight.tolist() == [[0.5, 0.5]]
    assert scaler.counters.steps == 1 and not scaler.last_step.skipped


class FailsOnce(torch.optim.SGD):
    failed = False

    def step(self, closure=None):
        if not self.failed:
            self.failed = True
            raise KeyboardInterrupt
        return super().step(closure)


def test_an_exception_in_the_optimizer_costs_that_step_only():
    model = linear()
    optimizer = FailsOnce(model.parameters(), lr=0.5)
    scaler = GradScaler("cpu", init_scale=S)
    for _ in range(2):
        optimizer.zero_grad()
        backward(scaler, model)
        try:
            scaler.step(optimizer)
        except KeyboardInterrupt:
            continue
        scaler.update()
    assert model.weight.tolist() == [[0.5, 0.5]]


def test_the_loss_of_a_dropped_batch_is_not_blamed():
    model = linear()
    optimizer = KINDS["foreach"](model.parameters())
    scaler = GradScaler("cpu", init_scale=S)
    backward(scaler, model, math.nan)
    scaler.unscale_(optimizer)
    optimizer.zero_grad()
    backward(scaler, model, 1e38)  # overflows at this scale, the loss itself is finite
    scaler.step(optimizer)
    scaler.update()
    assert scaler.last_step.reason == "overflow" and scaler.get_scale() == S / 2


@pytest.mark.parametrize("call", ["unscale_", "clip_grad_norm_", "clip_grad_value_", "step"])
def test_gradients_added_to_divided_ones_are_refused(call):
    model = linear()
    optimizer = KINDS["foreach"](model.parameters())
    scaler = GradScaler("cpu", init_scale=S)
    backward(scaler, model)
    scaler.unscale_(optimizer)
    backward(scaler, model)  # no zero_grad
    args = (1.0,) if call.startswith("clip") else ()
    with pytest.raises(RuntimeError, match=rf"`{call}\(optimizer\)`: backward\(\) has added"):
        getattr(scaler, call)(optimizer, *args)
    scaler.abandon()
    assert model.weight.grad is None
    backward(scaler, model)
    scaler.step(optimizer)
    scaler.update()
    assert model.weight.tolist() == [[0.5, 0.5]]


def test_another_optimizers_backward_pass_is_none_of_its_business():
    first, second = linear(), linear()
    a, b = (KINDS["foreach"](m.parameters()) for m in (first, second))
    scaler = GradScaler("cpu", init_scale=S)
    backward(scaler, first)
    scaler.unscale_(a)
    torch.nn.utils.clip_grad_norm_(first.parameters(), 1e6)
    backward(scaler, second)
    first.weight.grad.mul_(1.0)
    scaler.step(a)
    scaler.step(b)
    scaler.update()
    assert first.weight.tolist() == second.weight.tolist() == [[0.5, 0.5]]


def test_a_discriminator_may_be_stepped_before_the_generators_pass_reaches_it():
    judge, maker = linear(), torch.nn.Linear(2, 2, bias=False)
    a, b = (KINDS["foreach"](m.parameters()) for m in (judge, maker))
    scaler = GradScaler("cpu", init_scale=S)
    backward(scaler, judge)
    scaler.step(a)
    scaler.scale(judge(maker(torch.ones(1, 2))).sum()).backward()
    scaler.step(b)
    scaler.update()
    assert judge.weight.tolist() == [[0.5, 0.5]]


def test_abandon_forgets_micro_batches():
    model = linear()
    optimizer = KINDS["foreach"](model.parameters())
    scaler = GradScaler("cpu", init_scale=S)
    backward(scaler, model, 100.0)
    scaler.accumulate_(optimizer)
    scaler.abandon()
    backward(scaler, model)
    scaler.accumulate_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert model.weight.tolist() == [[0.5, 0.5]] and scaler.counters.steps == 1


def test_abandon_counts_what_was_stepped_and_leaves_the_scale():
    model = linear()
    optimizer = KINDS["foreach"](model.parameters())
    scaler = GradScaler("cpu", init_scale=S, growth_interval=1)
    backward(scaler, model)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="Call update"):
        scaler.step(optimizer)
    scaler.abandon()
    assert scaler.counters.steps == 1 and scaler.get_scale() == S
    GradScaler("cpu", enabled=False).abandon()


def test_a_callback_that_raises_comes_after_the_step():
    def complain(outcome):
        raise RuntimeError("skipped")

    model = linear()
    optimizer = KINDS["foreach"](model.parameters())
    scaler = GradScaler("cpu", init_scale=S, on_skip=complain)
    backward(scaler, model, math.inf)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="skipped"):
        scaler.update()
    optimizer.zero_grad()
    backward(scaler, model)
    scaler.step(optimizer)
    scaler.update()
    assert model.weight.tolist() == [[0.5, 0.5]]


def test_no_outcome_is_counted_twice():
    model = linear()
    optimizer = KINDS["foreach"](model.parameters())
    scaler = GradScaler("cpu", init_scale=S)
    backward(scaler, model)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    backward(scaler, model)
    scaler.unscale_(optimizer)
    scaler.update()  # the batch is dropped; the policy sees its flag
    assert scaler.counters.steps == 1 and len(scaler.last_step) == 0
    assert scaler.counters.updates == 2


def test_an_expected_optimizer_accumulates_over_the_others_updates():
    first, second = linear(), linear()
    slow, fast = (KINDS["foreach"](m.parameters()) for m in (first, second))
    scaler = GradScaler("cpu", init_scale=S, growth_interval=1)
    scaler.expect(slow)
    for index in range(3):
        scaler.scale(first(torch.ones(1, 2)).sum() + second(torch.ones(1, 2)).sum()).backward()
        scaler.step(fast)
        fast.zero_grad()
        if index == 2:
            scaler.step(slow)
        scaler.update()
    assert first.weight.tolist() == [[-0.5, -0.5]]
    with pytest.raises(TypeError, match=r"expect\(Linear\)"):
        scaler.expect(first)


@given(
    events=st.lists(st.sampled_from(["step", "drop", "raise", "clip and drop"]), max_size=8),
    kind=st.sampled_from(list(KINDS)),
)
def test_steps_given_up_anywhere_change_nothing(events, kind):
    model = linear()
    plain = copy.deepcopy(model)
    optimizer, other = (KINDS[kind](m.parameters()) for m in (model, plain))
    scaler = GradScaler("cpu", init_scale=S)
    for index, event in enumerate(events):
        for each in (optimizer, other):
            each.zero_grad()
        backward(scaler, model, 2.0**index)
        if event == "drop":
            scaler.unscale_(optimizer)
        elif event == "clip and drop":
            scaler.clip_grad_norm_(optimizer, 0.5)
        elif event == "raise":
            with pytest.raises(ZeroDivisionError):
                hook = optimizer.register_step_pre_hook(lambda *_: 1 / 0)
                scaler.step(optimizer)
            hook.remove()
        else:
            (2.0**index * plain(torch.ones(1, 2)).sum()).backward()
            other.step()
            scaler.step(optimizer)
            scaler.update()
    assert torch.equal(model.weight, plain.weight)
