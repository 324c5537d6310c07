"""Training with `half_precision` is the textbook's master-weights loop, bit for bit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import gradscale
from gradscale import half_precision
from half.by_hand import OPTIMIZERS, ByHand, batches, equal, network


def train(model, optimizer, steps, scaler=None, max_norm=None, clip=None):
    """The user's loop; `steps` are lists of micro-batches."""
    for micro_batches in steps:
        optimizer.zero_grad()
        for x, y in micro_batches:
            loss = F.mse_loss(model(x), y) / len(micro_batches)
            (loss if scaler is None else scaler.scale(loss)).backward()
        if max_norm is not None:
            if scaler is not None:
                scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(clip(model, optimizer), max_norm)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()


CLIPPED = {
    "the model's parameters": lambda model, optimizer: model.parameters(),
    "the masters": lambda model, optimizer: optimizer.param_groups[0]["params"],
}


def compare(name, format, log2_scale, parts, max_norm, clip, wide):
    build = OPTIMIZERS[name]
    steps = [batches(parts, seed) for seed in range(4)]
    model = network()
    hand = ByHand(model, build, format)
    optimizer = build(model.parameters())
    gradients = torch.float32 if wide else None
    half = half_precision(model, optimizer, format, gradients=gradients)
    scaler = gradscale.GradScaler("cpu", policy=gradscale.Static(2.0**log2_scale))
    train(model, optimizer, steps, scaler, max_norm, CLIPPED[clip])
    for micro_batches in steps:
        hand.step(micro_batches, 2.0**log2_scale, max_norm, wide)
    assert equal(half.parameters(), hand.masters)
    assert equal(model.parameters(), hand.model.parameters())
    assert not scaler.last_step.skipped


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(OPTIMIZERS)),
    format=st.sampled_from([torch.float16, torch.bfloat16]),
    log2_scale=st.integers(0, 12),
    parts=st.integers(1, 3),
    max_norm=st.sampled_from([None, 0.01, 10.0]),
    clip=st.sampled_from(sorted(CLIPPED)),
    wide=st.booleans(),
)
def test_any_optimizer_trains_as_by_hand(name, format, log2_scale, parts, max_norm, clip, wide):
    compare(name, format, log2_scale, parts, max_norm, clip, wide)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_trains_as_by_hand(name):
    compare(name, torch.float16, 8, 1, None, "the masters", False)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("format", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["SGD momentum", "AdamW fused", "Rprop"])
def test_without_a_scaler_a_hook_moves_the_gradients(name, format, wide):
    model, build = network(), OPTIMIZERS[name]
    hand = ByHand(model, build, format)
    optimizer = build(model.parameters())
    half = half_precision(model, optimizer, format, gradients=torch.float32 if wide else None)
    steps = [batches(2, seed) for seed in range(3)]
    train(model, optimizer, steps)
    for micro_batches in steps:
        hand.step(micro_batches, wide=wide)
    assert equal(half.parameters(), hand.masters)


def test_the_master_update_is_the_float32_optimizer_on_the_unscaled_gradient():
    model = network()
    optimizer = OPTIMIZERS["AdamW fused"](model.parameters())
    half = half_precision(model, optimizer)
    plain = [torch.nn.Parameter(p.detach().clone()) for p in half.parameters()]
    other = OPTIMIZERS["AdamW fused"](plain)
    scaler = gradscale.GradScaler("cpu", init_scale=2.0**10)
    for x, y in batches(3):
        optimizer.zero_grad()
        scaler.scale(F.mse_loss(model(x), y)).backward()
        for parameter, source in zip(plain, model.parameters(), strict=True):
            parameter.grad = source.grad.double().div(2.0**10).float()
        scaler.step(optimizer)
        scaler.update()
        other.step()
        assert equal(half.parameters(), plain)


def test_a_gradient_below_the_half_precision_minimum_survives_the_division():
    weight = torch.nn.Parameter(torch.ones(2))
    model = torch.nn.Module()
    model.weight = weight
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    half = half_precision(model, optimizer)
    scaler = gradscale.GradScaler("cpu", init_scale=2.0**16)
    scaler.scale((weight.float() * 2.0**-30).sum()).backward()
    assert weight.grad.dtype == torch.float16
    scaler.unscale_(optimizer)
    assert weight.grad.tolist() == [2.0**-30] * 2  # half of 2^-24, float16's smallest, is 0
    assert next(half.parameters()).grad is weight.grad


def test_updates_too_small_for_half_precision_add_up_in_the_master():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0**-13)
    half_precision(model, optimizer)
    for _ in range(8):
        optimizer.zero_grad()
        model(torch.ones(1, 1)).sum().backward()
        optimizer.step()
    # Each update alone is an eighth of float16's spacing below 1, and would round away.
    assert model.weight.item() == 1 - 2.0**-10
    plain = torch.ones(1, dtype=torch.float16)
    for _ in range(8):
        plain -= 2.0**-13
    assert plain.item() == 1.0


def test_an_overflow_skips_the_step_and_names_the_models_parameter():
    model = network()
    optimizer = OPTIMIZERS["SGD momentum"](model.parameters())
    half = half_precision(model, optimizer)
    scaler = gradscale.GradScaler("cpu", init_scale=2.0**30)
    before = [p.detach().clone() for p in half.parameters()]
    train(model, optimizer, [batches(1)], scaler)
    assert scaler.last_step.reason == "overflow"
    assert {c.name for c in scaler.last_step.culprits} <= set(dict(model.named_parameters()))
    assert scaler.last_step.culprits and scaler.get_scale() == 2.0**29
    assert equal(half.parameters(), before)


@pytest.mark.parametrize("name", ["AdamW fused", "SGD fused"])
def test_a_fused_optimizer_skips_by_itself_and_names_the_parameter(name):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    half = half_precision(model, optimizer)
    scaler = gradscale.GradScaler("cpu", init_scale=2.0**30)
    before = [p.detach().clone() for p in half.parameters()]
    train(model, optimizer, [batches(1)], scaler)
    assert scaler.last_step.skipped and scaler.last_step.culprits
    assert {c.name for c in scaler.last_step.culprits} <= set(dict(model.named_parameters()))
    assert equal(half.parameters(), before)


def test_an_infinite_weight_of_the_half_model_is_a_nonfinite_parameter():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    half = half_precision(model, optimizer)
    with torch.no_grad():
        optimizer.param_groups[0]["params"][0][0, 0] = 1e6  # finite in float32
    optimizer.step()
    assert torch.isinf(model.first.weight[0, 0])  # not hidden
    scaler = gradscale.GradScaler("cpu")
    train(model, optimizer, [batches(1)], scaler)
    assert scaler.last_step.reason == "nonfinite_parameter"
    del half


def test_saturating_copies_hide_it_on_request():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    half_precision(model, optimizer, saturate=True)
    with torch.no_grad():
        optimizer.param_groups[0]["params"][0][0, 0] = -1e6
    optimizer.step()
    assert model.first.weight[0, 0].item() == -65504.0


def test_half_gradients_are_freed_when_they_are_moved():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    half_precision(model, optimizer)
    scaler = gradscale.GradScaler("cpu", init_scale=2.0)
    ((x, y),) = batches(1)
    scaler.scale(F.mse_loss(model(x), y)).backward()
    half_gradient = torch.utils.weak.WeakTensorKeyDictionary()
    half_gradient[model.first.weight.grad] = True
    scaler.unscale_(optimizer)
    assert len(half_gradient) == 0 and model.first.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("clear", ["optimizer", "model", "zeros"])
def test_each_way_to_clear_gradients_clears_both(clear):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    half = half_precision(model, optimizer)
    hand = ByHand(network(), lambda p: torch.optim.SGD(p, lr=0.1), torch.float16)
    scaler = gradscale.GradScaler("cpu", policy=gradscale.Static(2.0**4))
    for x, y in batches(3):
        if clear == "zeros":
            optimizer.zero_grad(set_to_none=False)
            assert all(p.grad is None or not p.grad.any() for p in model.parameters())
        else:
            (model if clear == "model" else optimizer).zero_grad()
            assert all(p.grad is None for p in model.parameters())
        scaler.scale(F.mse_loss(model(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()
        hand.step([(x, y)], 2.0**4)
    assert equal(half.parameters(), hand.masters)
    optimizer.zero_grad()
    assert all(p.grad is None for p in (*model.parameters(), *half.parameters()))


def test_gradients_that_nobody_clears_add_up_as_in_float32():
    def run(convert):
        weight = torch.nn.Parameter(torch.ones(2))
        model = torch.nn.Module()
        model.weight = weight
        optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
        if convert:
            half_precision(model, optimizer)
        scaler = gradscale.GradScaler("cpu", init_scale=4.0, growth_interval=1)
        for _ in range(3):
            scaler.scale((weight.float() * 0.5).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        return optimizer.param_groups[0]["params"][0].tolist()

    assert run(True) == run(False)


def test_a_gradient_given_to_the_master_is_used():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    half_precision(model, optimizer)
    (master,) = optimizer.param_groups[0]["params"]
    model(torch.ones(1, 1)).sum().backward()
    master.grad = master.grad * 3  # somebody's own clipping
    optimizer.step()
    assert model.weight.item() == -3.0
    optimizer.zero_grad()
    master.grad = torch.ones(1, 1)
    optimizer.step()
    assert model.weight.item() == -4.0


def test_gradients_clipped_to_zero_before_they_are_unscaled_are_warned_of_once():
    model = torch.nn.Linear(64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    half_precision(model, optimizer)
    scaler = gradscale.GradScaler("cpu", policy=gradscale.Static(2.0**16))

    def clipped_step():
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(1, 64)).mean() * 8).backward()
        assert torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0) == torch.inf
        scaler.step(optimizer)
        scaler.update()

    with pytest.warns(UserWarning, match=r"all of them are zero.*Clip after `scaler\.unscale_"):
        clipped_step()
    clipped_step()  # and not again: a warning is an error here


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("change", ["divided", "cleared", "none"])
def test_gradients_that_are_modified_otherwise_are_not_warned_of(change, reads):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    half = half_precision(model, optimizer)
    scaler = gradscale.GradScaler("cpu", init_scale=2.0**4)
    for x, y in batches(5):
        scaler.scale(F.mse_loss(model(x), y)).backward()
        if reads:
            list(half.parameters())
        if change == "divided":
            torch._foreach_div_([p.grad for p in model.parameters()], 2.0)
        elif change == "cleared":
            optimizer.zero_grad(set_to_none=False)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


def test_several_losses_and_optimizers_share_the_model():
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"one": torch.nn.Linear(4, 4), "two": torch.nn.Linear(4, 1)})
    first = torch.optim.SGD(model["one"].parameters(), lr=0.1)
    second = torch.optim.AdamW(model["two"].parameters(), lr=0.1, fused=True)
    half = half_precision(model, [first, second])
    assert repr(half) == "HalfPrecision(float16: 4 parameters with float32 masters, 0 in float32)"
    scaler = gradscale.GradScaler("cpu", init_scale=2.0**4)
    before = [p.detach().clone() for p in half.parameters()]
    x = torch.randn(3, 4)
    scaler.scale(model["two"](model["one"](x)).float().square().mean()).backward()
    for optimizer in (first, second):
        scaler.step(optimizer)
    scaler.update()
    assert all(not torch.equal(a, b) for a, b in zip(before, half.parameters(), strict=True))


def test_closures_see_the_weights_of_each_evaluation():
    torch.manual_seed(0)
    x = torch.randn(16, 4)
    y = x @ torch.randn(4, 1)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe")
    half_precision(model, optimizer, torch.bfloat16)

    (master, _) = optimizer.param_groups[0]["params"]
    seen = []

    def closure():
        optimizer.zero_grad()
        assert torch.equal(model.weight, master.bfloat16())
        seen.append(tuple(master.flatten().tolist()))
        loss = F.mse_loss(model(x), y)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(4)]
    assert losses[-1] < 0.1 * losses[0] and len(set(seen)) > 4
