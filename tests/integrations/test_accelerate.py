"""Accelerate: one line, and what it does around the scaler stays right. Real runs on the CPU."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

import gradscale
from fading import Fading, dead_weights, fading_batch
from hosts import host

accelerate = host("accelerate")

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
}
BAD = 3
"""The step whose loss is not finite."""


class Run:
    """A training run as Accelerate's users write it, on the CPU in fp16."""

    def __init__(self, optimizer="sgd", attach="before", accumulate=1, **scaler):
        accelerate.state.AcceleratorState._reset_state(True)
        accelerate.state.GradientState._reset_state()
        self.accelerator = accelerate.Accelerator(
            mixed_precision="fp16", cpu=True, gradient_accumulation_steps=accumulate
        )
        self.attachment = None
        if attach == "before":
            self.attachment = gradscale.attach(self.accelerator, **scaler)
        model = Fading()
        plain = OPTIMIZERS[optimizer](model.parameters())
        schedule = torch.optim.lr_scheduler.StepLR(plain, step_size=1, gamma=0.5)
        prepared = self.accelerator.prepare(model, plain, schedule)
        self.model, self.optimizer, self.schedule = prepared
        if attach == "after":
            self.attachment = gradscale.attach(self.accelerator, **scaler)
        self.norms, self.skipped, self.dead = [], [], []

    def step(self, number, clip=1.0):
        x, y = fading_batch(number)
        with self.accelerator.accumulate(self.model):
            loss = nn.functional.cross_entropy(self.model(x), y)
            self.accelerator.backward(loss * (torch.inf if number == BAD else 1.0))
            if self.accelerator.sync_gradients:
                self.norms.append(self.accelerator.clip_grad_norm_(self.model.parameters(), clip))
            self.dead.append(dead_weights(self.model))
            self.optimizer.step()
            self.skipped.append(self.accelerator.optimizer_step_was_skipped)
            self.schedule.step()
            self.optimizer.zero_grad()

    def run(self, *numbers, **settings):
        for number in numbers:
            self.step(number, **settings)
        return self

    @property
    def weights(self):
        return [p.detach().clone() for p in self.model.parameters()]


def by_hand(optimizer, steps, clip=1.0, **settings):
    """The same run in a loop of one's own."""
    model = Fading()
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    scaler = gradscale.GradScaler("cpu", **settings)
    norms = []
    for number in range(steps):
        x, y = fading_batch(number)
        with torch.autocast("cpu", torch.float16):
            loss = nn.functional.cross_entropy(model(x).float(), y)
        scaler.scale(loss * (torch.inf if number == BAD else 1.0)).backward()
        scaler.unscale_(optimizer)
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), clip))
        scaler.step(optimizer)
        scaler.update()
        scaler.step_scheduler(schedule)
        optimizer.zero_grad()
    return [p.detach() for p in model.parameters()], norms, optimizer.param_groups[0]["lr"]


def same(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("attach", ["before", "after"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("layerwise", [False, True], ids=["global", "layerwise"])
def test_a_run_has_the_bits_of_a_loop_by_hand(attach, optimizer, layerwise):
    run = Run(optimizer, attach, layerwise=layerwise).run(*range(6), clip=0.01)
    weights, norms, rate = by_hand(optimizer, 6, clip=0.01, layerwise=layerwise)
    assert same(run.weights, weights)
    finite = [n for n in range(6) if n != BAD]
    assert [run.norms[n] for n in finite] == [norms[n] for n in finite]
    assert run.schedule.get_last_lr() == [rate]


@pytest.mark.parametrize("sync_free", [False, True], ids=["", "sync_free"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_skip_flag_is_right_and_the_schedule_waits(optimizer, sync_free):
    run = Run(optimizer, sync_free=sync_free).run(*range(6))
    assert run.skipped == [number == BAD for number in range(6)]
    assert run.schedule.scheduler.last_epoch == 5
    assert all(bool(p.isfinite().all()) for p in run.weights)


def test_a_plan_loses_no_gradient_where_one_scale_loses_some():
    assert Run(layerwise=False).run(0, 1, 2).dead[-1] >= 3
    assert Run(layerwise=True).run(0, 1, 2).dead[-1] == 0


def test_clipping_sees_the_true_norm_on_a_cpu():
    whole = Fading()
    x, y = fading_batch(0)
    nn.functional.cross_entropy(whole(x), y).backward()
    true = nn.utils.get_total_norm([p.grad for p in whole.parameters()])
    run = Run().run(0)
    torch.testing.assert_close(run.norms[0], true, rtol=1e-2, atol=0)


def test_accumulated_gradients_step_once_and_the_skip_flag_is_that_of_the_whole():
    run = Run(accumulate=2).run(*range(6))
    assert len(run.norms) == 3
    assert run.attachment.scaler.counters.steps == 3
    # Micro-batches 2 and 3 made one step, and one of them was bad.
    assert run.skipped[3] and not run.skipped[1] and not run.skipped[5]


@pytest.mark.parametrize("layerwise", [False, True], ids=["global", "layerwise"])
def test_a_saved_state_resumes_bit_for_bit(tmp_path, layerwise):
    settings = {"layerwise": layerwise, "init_scale": 2.0**10, "growth_interval": 2}
    whole = Run("adamw", **settings).run(*range(9))
    first = Run("adamw", **settings).run(*range(5))
    first.accelerator.save_state(str(tmp_path))
    again = Run("adamw", **settings)
    again.accelerator.load_state(str(tmp_path))
    again.run(*range(5, 9))
    assert same(again.weights, whole.weights)
    scaler, other = again.attachment.scaler, whole.attachment.scaler
    assert scaler.get_scale() == other.get_scale()
    assert scaler.counters == other.counters
    if layerwise:
        plan = scaler.layerwise.tracks.latest.plan
        assert plan.exponents == other.layerwise.tracks.latest.plan.exponents
        assert len(set(plan.exponents)) > 1


def test_detaching_leaves_the_accelerator_as_it_was():
    run = Run(attach="after")
    assert run.attachment.attached
    run.attachment.detach()
    assert run.accelerator.scaler is None and not run.accelerator.native_amp
    assert type(run.optimizer) is accelerate.optimizer.AcceleratedOptimizer
    assert run.optimizer.scaler is None
    assert "detached from Accelerator" in repr(run.attachment)
    run.model(fading_batch()[0]).sum().backward()
    run.optimizer.step()
    run.attachment.detach()  # again: nothing


def test_it_says_in_one_line_what_it_did():
    said = repr(Run(attach="after", layerwise=True).attachment)
    assert "Accelerator" in said and "1 prepared optimizer" in said and "layer-wise" in said
    assert "\n" not in said


def test_a_prepared_optimizer_can_be_pickled():
    run = Run().run(0)
    again = pickle.loads(pickle.dumps(run.optimizer))
    assert not again.step_was_skipped


def test_what_needs_no_scale_is_refused_with_the_way_out():
    accelerate.state.AcceleratorState._reset_state(True)
    accelerator = accelerate.Accelerator(mixed_precision="bf16", cpu=True)
    with pytest.raises(ValueError, match=r"mixed_precision='bf16'.*mixed_precision='fp16'"):
        gradscale.attach(accelerator)


def test_a_second_scaler_is_refused():
    run = Run()
    with pytest.raises(RuntimeError, match="already"):
        gradscale.attach(run.accelerator)
