"""A loop that forgets backward(), or whose loss never reaches the optimizer, is told so."""

import warnings

import pytest
import torch
from torch import nn

from gradscale import GradScaler, half_precision

X = torch.ones(2, 4)


def one(**settings):
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **settings)
    return model, optimizer, GradScaler("cpu")


def scaled(model, scaler):
    return scaler.scale(model(X).float().mean())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("before", ["", "unscale_", "clip_grad_norm_"])
def test_a_step_without_backward_is_refused_in_words(before, fused):
    model, optimizer, scaler = one(fused=fused)
    for _ in range(3):  # not the first alone: somebody may forget it in a branch
        scaled(model, scaler).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    scaled(model, scaler)
    if before:
        getattr(scaler, before)(optimizer, *((1.0,) if "clip" in before else ()))
    weights = model.weight.detach().clone()
    with pytest.raises(AssertionError, match=r"`step\(SGD\)`: a loss was scaled, but backward\(\)"):
        scaler.step(optimizer)
    assert torch.equal(model.weight, weights)


def test_torch_refuses_it_with_an_error_of_the_same_class():
    model, optimizer, _ = one()
    scaler = torch.amp.GradScaler("cpu")
    scaled(model, scaler)
    with pytest.raises(AssertionError, match="No inf checks"):
        scaler.step(optimizer)


def test_backward_on_the_unscaled_loss_is_warned_of_in_the_first_step():
    model, optimizer, scaler = one()
    loss = model(X).mean()
    scaler.scale(loss)
    loss.backward()
    with pytest.warns(UserWarning, match=r"no backward\(\) began at a loss that `scaler.scale`"):
        scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("mistake", ["another model", "detached", "cleared too late"])
def test_a_loss_that_reaches_no_parameter_of_the_optimizer_is_warned_of_once(mistake):
    model, optimizer, scaler = one()
    used = nn.Linear(4, 1) if mistake == "another model" else model
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            loss = used(X).mean()
            if mistake == "detached":
                loss = loss.detach().requires_grad_()
            scaler.scale(loss).backward()
            if mistake == "cleared too late":
                optimizer.zero_grad()
            scaler.step(optimizer)
            scaler.update()
    (warning,) = seen
    assert "no parameter of the optimizer has a gradient" in str(warning.message)
    assert warning.filename == __file__


def test_an_optimizer_that_takes_no_part_makes_an_ordinary_step():
    model, optimizer, scaler = one()
    unused = torch.optim.SGD(nn.Linear(4, 1).parameters(), lr=0.1)
    for first, second in ((optimizer, unused), (unused, optimizer)):
        optimizer.zero_grad()
        scaled(model, scaler).backward()
        scaler.step(first)
        scaler.step(second)
        scaler.update()
    optimizer.zero_grad()
    scaled(model, scaler).backward()
    scaler.step(unused)  # alone, but not at first
    scaler.update()
    assert scaler.counters.steps == 5 and not scaler.counters.skipped


def test_gradients_made_in_other_ways_are_left_alone():
    model, optimizer, scaler = one()
    weights = list(model.parameters())
    grads = torch.autograd.grad(scaled(model, scaler), weights)
    for weight, grad in zip(weights, grads, strict=True):
        weight.grad = grad
    scaler.step(optimizer)
    scaler.update()
    scaler.scale(torch.zeros(()))  # no graph, so no backward pass: gradients by hand
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    scaled(model, scaler).backward()
    scaler.accumulate_(optimizer)
    scaler.step(optimizer)
    scaler.update()


def test_a_half_precision_model_has_gradients_where_the_optimizer_has_none():
    model, optimizer, scaler = one()
    half_precision(model, optimizer)
    scaled(model, scaler).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    scaled(model, scaler)
    with pytest.raises(AssertionError, match="a loss was scaled"):
        scaler.step(optimizer)
