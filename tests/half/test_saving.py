"""Checkpoints, averages, exports: masters are never lost on the way."""

from __future__ import annotations

import copy
import io
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import gradscale
from gradscale import half_precision
from half.by_hand import OPTIMIZERS, batches, equal, network


def pair(name="AdamW foreach", seed=0, **settings):
    model = network(seed)
    optimizer = OPTIMIZERS[name](model.parameters())
    return model, optimizer, half_precision(model, optimizer, **settings)


def train(model, optimizer, scaler, data):
    for x, y in data:
        optimizer.zero_grad()
        scaler.scale(F.mse_loss(model(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("order", list(itertools.permutations(["model", "optimizer"])), ids=str)
@pytest.mark.parametrize("name", ["AdamW foreach", "AdamW fused", "SGD momentum"])
def test_a_fresh_pair_resumes_bit_for_bit_whatever_is_loaded_first(name, order):
    data = batches(6)
    scaler = gradscale.GradScaler("cpu", init_scale=2.0**8)
    model, optimizer, half = pair(name)
    train(model, optimizer, scaler, data[:3])
    saved = through_a_file(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "s": scaler.state_dict()}
    )
    train(model, optimizer, scaler, data[3:])

    fresh_model, fresh_optimizer, fresh = pair(name, seed=5)
    fresh_scaler = gradscale.GradScaler("cpu")
    fresh_scaler.load_state_dict(saved["s"])
    for what in order:
        {"model": fresh_model, "optimizer": fresh_optimizer}[what].load_state_dict(saved[what])
    train(fresh_model, fresh_optimizer, fresh_scaler, data[3:])
    assert equal(fresh.parameters(), half.parameters())
    assert equal(fresh_model.parameters(), model.parameters())


def test_the_optimizers_state_alone_brings_the_model_back():
    model, optimizer, half = pair()
    train(model, optimizer, gradscale.GradScaler("cpu", init_scale=2.0), batches(2))
    other_model, other_optimizer, other = pair(seed=3)
    other_optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    linked = [n for n, p in model.named_parameters() if p.dtype == torch.float16]
    ours, theirs = dict(half.named_parameters()), dict(other.named_parameters())
    assert equal([ours[n] for n in linked], [theirs[n] for n in linked])
    assert equal([model.first.weight], [other_model.first.weight])


def test_float32_weights_loaded_afterwards_reach_the_masters_unrounded():
    pretrained = network(7).state_dict()
    model, _, half = pair()
    model.load_state_dict(pretrained)
    assert equal(half.parameters(), [v for v in pretrained.values()])
    assert torch.equal(model.first.weight, pretrained["first.weight"].half())


def test_a_part_of_the_model_can_be_loaded():
    pretrained = network(7)
    model, _, half = pair()
    model.last.load_state_dict(pretrained.last.state_dict())
    assert torch.equal(dict(half.named_parameters())["last.weight"], pretrained.last.weight)


def test_a_state_saved_in_float32_training_is_taken_over():
    plain = network()
    optimizer = OPTIMIZERS["AdamW foreach"](plain.parameters())
    for x, y in batches(2):
        optimizer.zero_grad()
        F.mse_loss(plain(x), y).backward()
        optimizer.step()
    model, other, half = pair(seed=4)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    model.load_state_dict(plain.state_dict())
    assert equal(half.parameters(), plain.parameters())
    (one, two) = (next(iter(o.state.values()))["exp_avg"] for o in (optimizer, other))
    assert torch.equal(one, two)


def test_the_state_of_a_running_optimizer_moves_to_the_masters():
    model = network()
    optimizer = OPTIMIZERS["AdamW foreach"](model.parameters())
    F.mse_loss(model(torch.ones(2, 6)), torch.ones(2, 3)).backward()
    optimizer.step()
    optimizer.zero_grad()
    before = [state["exp_avg"] for state in optimizer.state.values()]
    weights = [p.detach().clone() for p in model.parameters()]
    half = half_precision(model, optimizer)
    after = [optimizer.state[p]["exp_avg"] for p in half.parameters()]
    assert len(optimizer.state) == len(before) and all(map(torch.equal, before, after))
    assert equal(half.parameters(), weights)


def test_the_export_loads_into_a_plain_float32_model():
    model, optimizer, half = pair()
    train(model, optimizer, gradscale.GradScaler("cpu", init_scale=2.0**8), batches(3))
    plain = network(9)
    plain.load_state_dict(half.float_state_dict())
    assert equal(plain.parameters(), half.parameters())
    copied = half.float_model()
    x = torch.randn(4, 6)
    assert torch.equal(plain(x), copied(x)) and not torch.equal(plain(x), model(x))
    assert all(p.grad_dtype == torch.float32 for p in copied.parameters())


def test_the_average_of_the_masters_equals_the_average_in_float32():
    model, optimizer, half = pair("SGD")
    average = AveragedModel(half.float_model(), multi_avg_fn=get_ema_multi_avg_fn(0.9))
    expected = [p.detach().clone() for p in half.parameters()]
    average.update_parameters(half)
    scaler = gradscale.GradScaler("cpu", init_scale=2.0)
    for batch in batches(4):
        train(model, optimizer, scaler, [batch])
        average.update_parameters(half)
        for mean, master in zip(expected, half.parameters(), strict=True):
            mean.lerp_(master.detach(), 1 - 0.9)
    assert equal(average.module.parameters(), expected)
    assert average(torch.ones(1, 6)).dtype == torch.float32


def test_an_average_of_the_half_model_is_a_half_model():
    model, optimizer, _ = pair("SGD")
    average = AveragedModel(model)
    train(model, optimizer, gradscale.GradScaler("cpu", init_scale=2.0), batches(1))
    average.update_parameters(model)
    assert average.module.first.weight.dtype == torch.float16
    assert equal(average.module.parameters(), model.parameters())
    assert average(torch.ones(1, 6)).dtype == torch.float32


def test_schedulers_made_before_and_after_move_the_masters_learning_rate():
    model = network()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    early = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    half = half_precision(model, optimizer)
    late = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    scaler = gradscale.GradScaler("cpu", init_scale=2.0)
    for batch, rate in zip(batches(3), (0.1, 0.025, 0.00625), strict=True):
        before = [p.detach().clone() for p in half.parameters()]
        train(model, optimizer, scaler, [batch])
        grads = [p.grad for p in model.parameters()]
        expected = [b.add(g, alpha=-rate) for b, g in zip(before, grads, strict=True)]
        assert equal(half.parameters(), expected)
        assert scaler.step_scheduler(early) and scaler.step_scheduler(late)


def test_parameters_added_later_get_masters_and_their_module_its_casts():
    model, optimizer, half = pair("AdamW foreach")
    model.extra = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    start = model.extra[0].weight.detach().clone()
    optimizer.add_param_group({"params": model.extra.parameters(), "lr": 0.5})
    assert model.extra[0].weight.dtype == torch.float16
    assert model.extra[1].weight.dtype == torch.float32
    assert torch.equal(dict(half.named_parameters())["extra.0.weight"], start)
    assert optimizer.param_groups[1]["params"][0].dtype == torch.float32
    out = model.extra(model(torch.ones(2, 6)))
    out.float().sum().backward()
    optimizer.step()
    assert not torch.equal(dict(half.named_parameters())["extra.0.weight"], start)
    state = through_a_file(optimizer.state_dict())
    assert len(state["master_weights"]) == 6


def test_parameter_groups_keep_their_settings_and_their_order():
    model = network()
    groups = [
        {"params": [model.first.weight], "lr": 0.5},
        {"params": [model.last.weight, model.last.bias], "weight_decay": 0.1},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    lists = [group["params"] for group in optimizer.param_groups]
    half = half_precision(model, optimizer)
    assert [len(g["params"]) for g in optimizer.param_groups] == [1, 2]
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.1]
    assert all(a is g["params"] for a, g in zip(lists, optimizer.param_groups, strict=True))
    assert optimizer.param_groups[0]["params"][0] is dict(half.named_parameters())["first.weight"]
    assert model.norm.weight.dtype == torch.float32


def test_weights_changed_in_place_reach_the_masters():
    model, optimizer, half = pair("SGD")
    old = dict(half.named_parameters())["first.weight"].detach().clone()
    with torch.no_grad():
        model.first.weight.clamp_(-0.1, 0.1)
    optimizer.step()
    new = dict(half.named_parameters())["first.weight"]
    assert torch.equal(new.half(), model.first.weight)
    inside = old.half() == model.first.weight
    assert inside.any() and not inside.all()
    assert torch.equal(new[inside], old[inside])  # what did not change kept its bits


def test_restoring_gives_back_a_float32_model_with_the_masters_values():
    model, optimizer, half = pair("AdamW foreach")
    train(model, optimizer, gradscale.GradScaler("cpu", init_scale=2.0), batches(2))
    values = [p.detach().clone() for p in half.parameters()]
    half.restore()
    assert equal(model.parameters(), values)
    assert all(
        a is b for a, b in zip(optimizer.param_groups[0]["params"], model.parameters(), strict=True)
    )
    assert "master_weights" not in optimizer.state_dict()
    plain, state = copy.deepcopy(model), through_a_file(optimizer.state_dict())
    other = OPTIMIZERS["AdamW foreach"](plain.parameters())
    other.load_state_dict(state)
    for net, opt in ((model, optimizer), (plain, other)):
        F.mse_loss(net(torch.ones(2, 6)), torch.ones(2, 3)).backward()
        opt.step()
    assert equal(model.parameters(), plain.parameters())
    optimizer.zero_grad()
    half_precision(model, optimizer)  # and again


def test_a_state_for_other_shapes_is_refused():
    _, optimizer, _ = pair()
    state = optimizer.state_dict()
    state["master_weights"][0] = torch.ones(2)
    with pytest.raises(ValueError, match=r"master 0 has shape \(2,\).*as they were when"):
        optimizer.load_state_dict(state)


def test_replacing_parameters_while_loading_is_refused():
    model, _, _ = pair()
    with pytest.raises(RuntimeError, match=r"assign=True\)` replaces the parameters"):
        model.load_state_dict(network().state_dict(), assign=True)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", ["AdamW fused", "SGD momentum"])
def test_masters_and_their_state_follow_the_model_to_another_device(name):
    model, optimizer, half = pair(name)
    train(model, optimizer, gradscale.GradScaler("cpu", init_scale=2.0), batches(1))
    model.cuda()
    data = [(x.cuda(), y.cuda()) for x, y in batches(2)]
    train(model, optimizer, gradscale.GradScaler("cuda", init_scale=2.0), data)
    assert all(p.is_cuda for p in half.parameters())


def test_weights_written_since_the_last_step_are_saved_exported_averaged_and_restored():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    half = half_precision(model, optimizer)
    with torch.no_grad():
        model.weight[0, 0] = 0.75
    kept = optimizer.param_groups[0]["params"][0][0, 1].item()
    expected = [[0.75, kept]]
    assert optimizer.state_dict()["master_weights"][0].tolist() == expected
    assert half.float_state_dict()["weight"].tolist() == expected
    optimizer.load_state_dict(optimizer.state_dict())
    assert model.weight[0, 0] == 0.75
    with torch.no_grad():
        model.weight[0, 0] = 0.5
    assert next(half.parameters())[0, 0] == 0.5
    with torch.no_grad():
        model.weight[0, 0] = 0.25
    half.restore()
    assert model.weight.tolist() == [[0.25, kept]]
