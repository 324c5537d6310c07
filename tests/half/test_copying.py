"""A pair that is copied or pickled together goes on as the one it was copied from."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradscale
from gradscale import half_precision
from half.by_hand import OPTIMIZERS, batches, equal, network


def saved(things):
    file = io.BytesIO()
    torch.save(things, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda things: pickle.loads(pickle.dumps(things)),
    "torch.save": saved,
}


def train(model, optimizer, data, scaler=None):
    scaler = scaler or gradscale.GradScaler("cpu", init_scale=2.0**8)
    for x, y in data:
        optimizer.zero_grad()
        scaler.scale(F.mse_loss(model(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()
    return scaler


def masters(optimizer):
    return [p.detach() for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize("settings", [{}, {"gradients": torch.float32}], ids=["half", "float32"])
@pytest.mark.parametrize("reverse", [False, True], ids=["model first", "optimizer first"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["AdamW foreach", "AdamW fused", "SGD momentum"])
def test_a_copied_pair_trains_on_bit_for_bit(name, way, reverse, settings):
    data = batches(6)
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    half_precision(model, optimizer, **settings)
    train(model, optimizer, data[:3])
    pair = (optimizer, model) if reverse else (model, optimizer)
    first, second = WAYS[way](pair)
    other, its_optimizer = (second, first) if reverse else (first, second)
    before = [p.clone() for p in model.parameters()]
    train(other, its_optimizer, data[3:])
    assert equal(model.parameters(), before)  # the original is left alone
    train(model, optimizer, data[3:])
    assert equal(other.parameters(), model.parameters())
    assert equal(masters(its_optimizer), masters(optimizer))
    assert other.first.weight.dtype == torch.float16


@pytest.mark.parametrize("way", WAYS)
def test_a_copied_half_goes_on_with_its_copied_pair(way):
    model = network()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    half = half_precision(model, optimizer, keep="last")
    model, optimizer, half = WAYS[way]((model, optimizer, half))
    assert half.model is model
    model.extra = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    optimizer.add_param_group({"params": model.extra.parameters()})
    assert model.extra[0].weight.dtype == torch.float16
    assert model.last.weight.dtype == model.extra[1].weight.dtype == torch.float32
    train(model, optimizer, batches(1))
    with torch.no_grad():
        next(half.parameters()).fill_(0.25)
    model(torch.ones(1, 6))
    assert model.first.weight.unique().tolist() == [0.25]
    half.restore()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert "master_weights" not in optimizer.state_dict()


def test_a_half_by_itself_is_copied_with_all_that_is_its_own():
    model = network()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    half = half_precision(model, optimizer)
    twin = copy.deepcopy(half)
    assert repr(twin) == repr(half) and twin.model is not model
    assert equal(twin.parameters(), half.parameters())
    assert not any(a is b for a, b in zip(twin.parameters(), half.parameters(), strict=True))


def test_a_copy_without_its_half_saves_and_loads_and_takes_no_new_parameters():
    model = network()
    optimizer = OPTIMIZERS["SGD momentum"](model.parameters())
    half_precision(model, optimizer)
    other, its_optimizer = copy.deepcopy((model, optimizer))
    train(model, optimizer, batches(2))
    its_optimizer.load_state_dict(optimizer.state_dict())
    other.load_state_dict(model.state_dict())
    assert equal(masters(its_optimizer), masters(optimizer))
    assert equal(other.parameters(), model.parameters())
    again, twice = copy.deepcopy((other, its_optimizer))
    train(again, twice, batches(1))
    assert not equal(masters(twice), masters(optimizer))
    groups = len(its_optimizer.param_groups)
    with pytest.raises(RuntimeError, match=r"is a copy.*deepcopy\(\(model, optimizer, half\)\)"):
        its_optimizer.add_param_group({"params": nn.Linear(2, 2).parameters()})
    assert len(its_optimizer.param_groups) == groups


@pytest.mark.parametrize("written", ["parameter", "master"])
def test_what_was_written_just_before_is_copied(written):
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    half = half_precision(model, optimizer)
    with torch.no_grad():
        {"parameter": model.weight, "master": next(half.parameters())}[written].fill_(3.0)
    other, its_optimizer = copy.deepcopy((model, optimizer))
    assert other.weight.tolist() == masters(its_optimizer)[0].tolist() == [[3.0, 3.0]]


def test_two_optimizers_and_a_shared_weight_stay_one_pair():
    model = nn.ModuleDict({"one": nn.Linear(2, 2), "two": nn.Linear(2, 1)})
    first = torch.optim.SGD(model["one"].parameters(), lr=0.1)
    second = torch.optim.SGD(model.parameters(), lr=0.1)
    half_precision(model, [first, second])
    copied, *optimizers = copy.deepcopy((model, first, second))
    shared = optimizers[0].param_groups[0]["params"][0]
    assert any(shared is p for p in optimizers[1].param_groups[0]["params"])
    before = copied["one"].weight.clone()
    copied["two"](copied["one"](torch.ones(1, 2))).float().sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    assert torch.equal(copied["one"].weight, shared.half())
    assert not torch.equal(copied["one"].weight, before)


def test_culprits_of_a_copied_pair_have_their_names():
    model = network()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    half_precision(model, optimizer)
    other, its_optimizer = copy.deepcopy((model, optimizer))
    scaler = train(
        other, its_optimizer, batches(1), gradscale.GradScaler("cpu", init_scale=2.0**30)
    )
    assert {c.name for c in scaler.last_step.culprits} <= set(dict(model.named_parameters()))
    assert scaler.last_step.culprits


def test_a_copy_of_an_optimizer_that_carries_the_scale_is_unscaled_and_a_pair():
    model = network()
    optimizer = OPTIMIZERS["AdamW foreach"](model.parameters())
    half_precision(model, optimizer, gradients=torch.float32)
    scaler = gradscale.GradScaler("cpu", init_scale=2.0**8, undo="moments")
    train(model, optimizer, batches(2), scaler)
    other, its_optimizer = copy.deepcopy((model, optimizer))
    expected = optimizer.state_dict()["state"][0]["exp_avg"]
    assert torch.equal(its_optimizer.state_dict()["state"][0]["exp_avg"], expected)
    before = other.first.weight.clone()
    train(other, its_optimizer, batches(1))
    assert not torch.equal(other.first.weight, before)


def test_after_restore_an_optimizer_is_copied_as_any_other():
    model = network()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    half_precision(model, optimizer).restore()
    other, its_optimizer = copy.deepcopy((model, optimizer))
    assert not {"__reduce_ex__", "_gradscale_masters"} & optimizer.__dict__.keys()
    assert its_optimizer.param_groups[0]["params"][0] is other.first.weight
