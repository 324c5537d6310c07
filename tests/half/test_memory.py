"""What nobody holds any more goes, with its masters."""

from __future__ import annotations

import gc
from weakref import ref

import pytest
import torch

import gradscale


@pytest.mark.parametrize("scaled", [False, True])
def test_a_half_model_and_its_optimizer_are_freed(scaled):
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    half = gradscale.half_precision(model, optimizer)
    scaler = gradscale.GradScaler("cpu", enabled=scaled)
    scaler.scale(model(torch.ones(1, 4)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    alive = [ref(thing) for thing in (half, model, optimizer, *optimizer.param_groups[0]["params"])]
    alive += [ref(parameter) for parameter in model.parameters()]
    del half, model, optimizer
    gc.collect()
    assert not [found for found in (reference() for reference in alive) if found is not None]


def test_a_model_goes_on_without_its_optimizer():
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    gradscale.half_precision(model, optimizer)
    model(torch.ones(1, 4)).sum().backward()
    del optimizer
    gc.collect()
    model(torch.ones(1, 4)).sum().backward()
    assert model.weight.grad.dtype == torch.float16 and model.weight.grad[0, 0] == 2
    state = {name: value.float() + 1 for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    assert model.state_dict()["weight"].dtype == torch.float16


def test_a_gradient_that_the_model_clears_after_its_step_is_freed_at_once():
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    gradscale.half_precision(model, optimizer)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    alive = torch.utils.weak.WeakTensorKeyDictionary({p.grad: True for p in model.parameters()})
    model.zero_grad()
    assert len(alive) == 0
