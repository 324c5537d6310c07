"""Whoever writes weights, and whichever of the two it is: parameter and master agree again."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

import gradscale
from gradscale import half_precision
from half.by_hand import OPTIMIZERS, equal, network

X = torch.ones(1, 2)


def linear(weight=1.0, **settings):
    model = nn.Linear(2, 1, bias=False)
    nn.init.constant_(model.weight, weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return model, optimizer, half_precision(model, optimizer, **settings)


def step(model, optimizer):
    model(X).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def by_groups(optimizer, half):
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.clamp_(-0.25, 0.25)


@torch.no_grad()
def by_half(optimizer, half):
    for parameter in half.parameters():
        parameter.copy_(torch.full_like(parameter, 0.25))


def by_other_memory(optimizer, half):
    for parameter in half.parameters():
        parameter.data = torch.full_like(parameter, 0.25)


def by_data(optimizer, half):
    for parameter in half.parameters():
        parameter.data.fill_(0.25)
    half.sync()


WAYS = [by_groups, by_half, by_other_memory, by_data]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_what_is_written_to_masters_is_what_the_model_computes_with(way):
    model, optimizer, half = linear()
    step(model, optimizer)
    way(optimizer, half)
    assert model(X).item() == 0.5
    assert model.weight.tolist() == [[0.25, 0.25]]
    step(model, optimizer)
    assert model(X).item() == -0.5


def test_an_average_swapped_into_the_masters_and_out_again_leaves_no_trace():
    model, _, half = linear(weight=1 + 2.0**-13)
    before = [p.detach().clone() for p in half.parameters()]
    with torch.no_grad():
        for parameter in half.parameters():
            parameter.fill_(3.0)
        assert model.eval()(X).item() == 6.0
        for parameter, value in zip(half.parameters(), before, strict=True):
            parameter.copy_(value)
    assert model(X).item() == 2.0 and equal(half.parameters(), before)


def test_a_copy_of_the_model_and_a_compiled_one_look_for_nothing():
    model, _, half = linear()
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        next(half.parameters()).fill_(3.0)
    assert twin(X).item() == 2.0 and compiled(X).item() == 2.0
    half.sync()
    assert twin(X).item() == 2.0 and compiled(X).item() == 6.0


@pytest.mark.parametrize("order", list(itertools.permutations(["model", "optimizer"])), ids=str)
@pytest.mark.parametrize("loaded", list(itertools.permutations(["model", "optimizer"])), ids=str)
@pytest.mark.parametrize("written", ["parameter", "master"])
def test_a_state_holds_what_was_written_just_before_in_every_order(written, order, loaded):
    model, optimizer, half = linear(weight=1 + 2.0**-13)
    with torch.no_grad():
        {"parameter": model.weight, "master": next(half.parameters())}[written][0, 0] = 3.0
    saved = {}
    for what in order:
        saved[what] = copy.deepcopy({"model": model, "optimizer": optimizer}[what].state_dict())
    other, its_optimizer, its_half = linear(weight=7.0)
    for what in loaded:
        {"model": other, "optimizer": its_optimizer}[what].load_state_dict(saved[what])
    assert next(its_half.parameters()).tolist() == [[3.0, 1 + 2.0**-13]]
    assert other.weight.tolist() == model.weight.tolist() == [[3.0, 1.0]]


@pytest.mark.parametrize("what", ["float_state_dict", "float_model"])
@pytest.mark.parametrize("written", ["parameter", "master"])
def test_exports_hold_what_was_written_just_before(written, what):
    model, _, half = linear()
    with torch.no_grad():
        {"parameter": model.weight, "master": next(half.parameters())}[written].fill_(3.0)
    state = half.float_state_dict() if what == "float_state_dict" else half.float_model()
    state = state if isinstance(state, dict) else state.state_dict()
    assert state["weight"].tolist() == [[3.0, 3.0]]


@pytest.mark.parametrize("order", list(itertools.permutations(["model", "optimizer"])), ids=str)
def test_a_step_interrupted_before_the_copy_back_is_saved_as_taken(order):
    model, optimizer, _ = linear()
    interrupting = optimizer.register_step_post_hook(lambda *_: 1 / 0)
    optimizer._optimizer_step_post_hooks.move_to_end(interrupting.id, last=False)
    model(X).sum().backward()
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    saved = {w: {"model": model, "optimizer": optimizer}[w].state_dict() for w in order}
    assert saved["model"]["weight"].tolist() == [[0.5, 0.5]]
    assert saved["optimizer"]["master_weights"][0].tolist() == [[0.5, 0.5]]


def test_parameter_and_master_written_to_different_values_are_refused():
    model, optimizer, half = linear()
    with torch.no_grad():
        model.weight.fill_(3.0)
        optimizer.param_groups[0]["params"][0].fill_(4.0)
    for call in (lambda: model(X), optimizer.step, model.state_dict, half.float_state_dict):
        with pytest.raises(RuntimeError, match=r"were both written.*half\.sync\(\)"):
            call()
    half.sync()
    assert model(X).item() == 8.0


@pytest.mark.parametrize("what", ["model", "optimizer"])
def test_a_state_that_is_loaded_ends_the_disagreement(what):
    model, optimizer, half = linear()
    target = {"model": model, "optimizer": optimizer}[what]
    saved = copy.deepcopy(target.state_dict())
    with torch.no_grad():
        model.weight.fill_(3.0)
        optimizer.param_groups[0]["params"][0].fill_(4.0)
    target.load_state_dict(saved)
    assert model(X).item() == 2.0 and next(half.parameters()).tolist() == [[1.0, 1.0]]


def test_a_state_without_some_masters_leaves_those_as_they_were_written():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    half = half_precision(model, optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["master_weights"][1]
    with torch.no_grad():
        model.weight.fill_(3.0)
        model.bias.fill_(3.0)
    optimizer.load_state_dict(saved)
    assert model.bias.item() == dict(half.named_parameters())["bias"].item() == 3.0
    assert torch.equal(model.weight, saved["master_weights"][0].half())


def test_writes_to_both_that_agree_are_no_conflict():
    model, optimizer, _ = linear(weight=1 + 2.0**-13)
    with torch.no_grad():
        model.weight.clamp_(max=0.5)
        optimizer.param_groups[0]["params"][0].clamp_(max=0.5)
    assert model(X).item() == 1.0


def test_asking_for_the_masters_takes_what_was_written_to_the_parameters():
    model, _, half = linear()
    with torch.no_grad():
        model.weight.fill_(3.0)
        backup = [p.clone() for p in half.parameters()]
        next(half.parameters()).fill_(4.0)
    assert backup[0].tolist() == [[3.0, 3.0]] and model(X).item() == 8.0


def test_a_step_hook_that_was_there_before_writes_the_new_weights():
    model = nn.Linear(2, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    seen = []

    @torch.no_grad()
    def clamp(*_):
        seen.append(model.weight[0, 0].item())
        model.weight.clamp_(max=0.5)

    optimizer.register_step_post_hook(clamp)
    half = half_precision(model, optimizer)
    for _ in range(2):
        step(model, optimizer)
    assert seen == [0.75, 0.25]
    assert next(half.parameters()).tolist() == [[0.25, 0.25]]


def test_a_step_hook_that_was_there_before_finds_the_gradients():
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    seen = []
    optimizer.register_step_post_hook(
        lambda o, *_: seen.append(o.param_groups[0]["params"][0].grad.tolist())
    )
    half_precision(model, optimizer)
    step(model, optimizer)
    assert seen == [[[1.0, 1.0]]]


class OwnList(torch.optim.SGD):
    def __init__(self, parameters, lr):
        self.mine = list(parameters)
        super().__init__(self.mine, lr)

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.mine:
            parameter.sub_(0.5)


def test_an_optimizer_with_a_list_of_its_own_is_refused_at_its_step():
    model = nn.Linear(2, 1, bias=False)
    optimizer = OwnList(model.parameters(), 0.1)
    half_precision(model, optimizer)
    model(X).sum().backward()
    with pytest.raises(RuntimeError, match=r"OwnList\.step\(\)` wrote the model's.*param_groups"):
        optimizer.step()


def test_weights_written_in_a_closure_reach_the_masters():
    model, optimizer, half = linear()

    def closure():
        optimizer.zero_grad()
        with torch.no_grad():
            model.weight.clamp_(max=0.5)
        loss = model(X).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert next(half.parameters()).tolist() == [[0.0, 0.0]]


def test_vectors_written_by_torchs_own_function_reach_the_masters():
    model, optimizer, half = linear()
    vector = torch.full((2,), 3.0, dtype=torch.float16)
    nn.utils.vector_to_parameters(vector, model.parameters())
    step(model, optimizer)
    assert next(half.parameters()).tolist() == [[2.5, 2.5]] and model(X).item() == 5.0


@pytest.mark.parametrize("change", ["float", "half", "bfloat16", "vector"])
@pytest.mark.parametrize("format", [torch.float16, torch.bfloat16], ids=str)
def test_another_dtype_after_the_conversion_is_refused_with_the_way_out(change, format):
    model = network()
    half = half_precision(model, OPTIMIZERS["SGD"](model.parameters()), format)
    if change == "vector":
        vector = nn.utils.parameters_to_vector(p.float() for p in model.parameters())
        nn.utils.vector_to_parameters(vector, model.parameters())
    else:
        getattr(model, change)()
    with pytest.raises(
        RuntimeError, match=r"is torch\..*half\.restore\(\)`, or `half\.float_model"
    ):
        model(torch.ones(1, 6))
    del half


def test_a_state_that_saturates_loads_alike_in_every_order():
    states = []
    for order in itertools.permutations(["model", "optimizer"]):
        model, optimizer, half = linear(weight=1e6, saturate=True)
        assert model.weight[0, 0].item() == 65504.0
        saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        saved = copy.deepcopy(saved)
        other, its_optimizer, its_half = linear(weight=7.0, saturate=True)
        for what in order:
            {"model": other, "optimizer": its_optimizer}[what].load_state_dict(saved[what])
        states.append((other.weight.tolist(), next(its_half.parameters()).tolist()))
    assert states == [([[65504.0] * 2], [[1e6] * 2])] * 2
    other.load_state_dict(half.float_state_dict())
    assert other.weight.tolist() == [[65504.0] * 2]


def test_a_scaler_that_leaves_a_step_on_the_device_writes_nothing_either():
    model, optimizer, half = linear()
    scaler = gradscale.GradScaler("cpu", init_scale=2.0**4, sync_free=True)
    for factor in (1.0, torch.inf, 1.0):
        scaler.scale(model(X).sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert next(half.parameters()).tolist() == [[0.0, 0.0]] and model(X).item() == 0.0
