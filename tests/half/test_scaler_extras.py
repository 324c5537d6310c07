"""The scaler's own clipping, accumulation, undoing and measured policies, on masters."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import gradscale
from gradscale import half_precision
from half.by_hand import OPTIMIZERS, ByHand, batches, equal, network


def pair(name, **settings):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    return model, optimizer, half_precision(model, optimizer, **settings)


@pytest.mark.parametrize("name", ["SGD momentum", "AdamW fused"])
@pytest.mark.parametrize("max_norm", [0.05, 100.0])
def test_the_scalers_own_clipping_is_that_of_torch(name, max_norm):
    ours, optimizer, half = pair(name)
    theirs, other, reference = pair(name)
    one, two = (gradscale.GradScaler("cpu", init_scale=2.0**8) for _ in range(2))
    for x, y in batches(3):
        one.scale(F.mse_loss(ours(x), y)).backward()
        norm = one.clip_grad_norm_(optimizer, max_norm)
        one.step(optimizer)
        one.update()
        optimizer.zero_grad()
        two.scale(F.mse_loss(theirs(x), y)).backward()
        two.unscale_(other)
        expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
        two.step(other)
        two.update()
        other.zero_grad()
        assert norm.item() == pytest.approx(expected.item(), rel=1e-5)
    for a, b in zip(half.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("name", ["SGD momentum", "AdamW fused"])
def test_the_scaler_accumulates_half_gradients_in_float32(name, drop):
    model, optimizer, half = pair(name)
    hand = ByHand(network(), OPTIMIZERS[name], torch.float16)
    scaler = gradscale.GradScaler("cpu", policy=gradscale.Static(2.0**8))
    steps = [batches(4, seed) for seed in range(3)]
    for micro_batches in steps:
        for x, y in micro_batches:
            scaler.scale(F.mse_loss(model(x), y) / 4).backward()
            scaler.accumulate_(optimizer, divide_by="nothing", drop_overflow=drop)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        hand.step(micro_batches, 2.0**8, wide=True)
    assert equal(half.parameters(), hand.masters)
    assert equal(model.parameters(), hand.model.parameters())


def test_only_the_micro_batch_that_overflows_is_left_out():
    model, optimizer, half = pair("SGD")
    hand = ByHand(network(), OPTIMIZERS["SGD"], torch.float16)
    scaler = gradscale.GradScaler("cpu", policy=gradscale.Static(2.0**8))
    data = batches(3)
    for number, (x, y) in enumerate(data):
        loss = F.mse_loss(model(x), y) / 2
        scaler.scale(loss * (2.0**20 if number == 1 else 1.0)).backward()
        scaler.accumulate_(optimizer, divide_by="nothing", drop_overflow=True)
    scaler.step(optimizer)
    scaler.update()
    hand.step([data[0], data[2]], 2.0**8, wide=True)
    assert equal(half.parameters(), hand.masters)


@pytest.mark.parametrize("policy", [gradscale.LastMaximum(), gradscale.TwoSided()], ids=repr)
def test_policies_see_the_unscaled_masters_gradients(policy):
    model, optimizer, half = pair("SGD")
    scaler = gradscale.GradScaler("cpu", policy=policy)
    for x, y in batches(3):
        optimizer.zero_grad()
        scaler.scale(F.mse_loss(model(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()
    seen = scaler.last_step.observation
    if seen.amax is not None:
        largest = max(p.grad.abs().max().item() for p in model.parameters())
        assert seen.amax.item() == largest
    else:
        assert seen.exponents.sum() == sum(p.numel() for p in half.parameters())


@pytest.mark.parametrize(
    ("name", "way"), [("SGD momentum", "learning_rate"), ("AdamW foreach", "moments")]
)
def test_undoing_the_scale_in_the_optimizer_works_on_masters(name, way):
    def run(undo):
        model, optimizer, half = pair(name)
        scaler = gradscale.GradScaler("cpu", init_scale=2.0**8, undo=undo)
        for x, y in batches(4):
            optimizer.zero_grad()
            scaler.scale(F.mse_loss(model(x), y)).backward()
            scaler.step(optimizer)
            scaler.update()
        assert equal([p.half() for p in half.parameters()][:2], list(model.parameters())[:2])
        return list(half.parameters())

    ours = run(way)
    for a, b in zip(ours, run("gradient"), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_step_that_the_device_skips_leaves_the_models_weights():
    """The masters are rounded into the model inside `optimizer.step`, before the skip was known."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    half_precision(model, optimizer)
    scaler = gradscale.GradScaler("cpu", init_scale=1.0, sync_free=True)
    for batch in (torch.ones(1, 3), torch.full((1, 3), torch.inf)):
        with torch.no_grad():
            model.weight[0, 0] = 0.5
        optimizer.zero_grad()
        before = model.weight.detach().clone()
        scaler.scale(model(batch).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.last_step.skipped and torch.equal(model.weight, before)
    masters = optimizer.param_groups[0]["params"]
    assert torch.equal(masters[0].half(), model.weight) and masters[0][0, 0] == 0.5


def test_weights_written_before_an_abandoned_closure_stay():
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.LBFGS(model.parameters())
    half_precision(model, optimizer)
    scaler = gradscale.GradScaler("cpu")
    with torch.no_grad():
        model.weight.fill_(0.5)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.full((1, 3), torch.inf)).sum()
        scaler.scale(loss).backward()
        return loss

    scaler.step(optimizer, closure)
    assert scaler.last_step.skipped and model.weight.tolist() == [[0.5] * 3]


@pytest.mark.parametrize("whose", ["model", "optimizer"])
def test_the_mean_of_micro_batches_is_found_by_whoever_clips(whose):
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    half_precision(model, optimizer)
    scaler = gradscale.GradScaler("cpu", init_scale=8.0)
    for _ in range(2):
        scaler.scale(model(torch.full((1, 3), 2.0)).sum()).backward()
        scaler.accumulate_(optimizer)
    scaler.unscale_(optimizer)
    owners = model.parameters() if whose == "model" else optimizer.param_groups[0]["params"]
    norm = torch.nn.utils.clip_grad_norm_(list(owners), 0.5)
    assert norm.item() == pytest.approx(13**0.5)
    assert model.weight.grad is optimizer.param_groups[0]["params"][0].grad
    assert model.weight.grad.norm() < 0.5
