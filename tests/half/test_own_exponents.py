"""Layer-wise plans over half-precision leaves: each keeps its exponent until it is divided."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradscale
from gradscale import Layerwise, half_precision
from gradscale.half.link import link_of
from gradscale.layerwise import layerwise as stepping
from gradscale.plans import ScalePlan
from gradscale.plans.planner import UserGiven
from half.by_hand import OPTIMIZERS, batches, equal, network


def random_plans(seed=3, low=0, high=5):  # never lower, where float16 would round otherwise
    generator = torch.Generator().manual_seed(seed)
    decide = UserGiven(lambda graph, seen: ScalePlan.random(graph, generator, low, high))
    return Layerwise(decide, measure_every=1)


def converted(layerwise, name="SGD"):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    half = half_precision(model, optimizer)
    scaler = gradscale.GradScaler(
        "cpu", policy=gradscale.Static(2.0**9), layerwise=layerwise() if layerwise else False
    )
    return model, optimizer, half, scaler


def run(layerwise, name="SGD momentum", parts=1, way="plain", steps=4):
    """Masters after some steps, and the exponents at which leaves held their gradients."""
    model, optimizer, half, scaler = converted(layerwise, name)
    seen = set()
    for seed in range(steps):
        for x, y in batches(parts, seed):
            scaler.scale(F.mse_loss(model(x), y) / parts).backward()
            seen.update(link_of(p).exponent for p in model.parameters() if link_of(p))
            if way == "accumulate":
                scaler.accumulate_(optimizer, divide_by="nothing")
        if way == "clip":
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        assert not scaler.last_step.skipped
        scaler.update()
        optimizer.zero_grad(set_to_none=way != "zeros")
    return list(half.parameters()), seen


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("way", ["plain", "clip", "accumulate", "zeros"])
@pytest.mark.parametrize("name", ["SGD momentum", "AdamW fused"])
def test_random_exponents_of_leaves_leave_every_bit_of_the_masters(name, way, parts):
    plain, at = run(None, name, parts, way)
    assert at == {0}
    for seed in range(3):
        planned, exponents = run(lambda seed=seed: random_plans(seed), name, parts, way)
        assert equal(planned, plain)
        assert len(exponents) > 1 or way == "zeros"


def deep(layers=24, width=32):
    torch.manual_seed(0)
    parts = [part for _ in range(layers) for part in (nn.Linear(width, width), nn.GELU())]
    return nn.Sequential(*parts, nn.Linear(width, 1))


def lost_and_cosine(model, truth):
    """Of the first layer's weight gradient: the share that is zero and should not, the angle."""
    ours, true = model[0].weight.grad.double(), truth[0].weight.grad.double()
    lost = ((ours == 0) & (true != 0)).double().mean().item()
    norms = ours.norm() * true.norm()
    return lost, ((ours * true).sum() / norms).item() if norms else 0.0


def trained(layerwise, steps=4):
    model, x = deep(), torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    half = half_precision(model, optimizer)
    scaler = gradscale.GradScaler("cpu", layerwise=layerwise)
    for _ in range(steps):
        optimizer.zero_grad()
        scaler.scale(model(x).square().mean() * 2.0**-8).backward()
        scaler.step(optimizer)
        scaler.update()
    truth = copy.deepcopy(half.float_model())
    (truth(x).square().mean() * 2.0**-8).backward()
    return (*lost_and_cosine(model, truth), scaler)


def test_a_deep_model_whose_first_layers_vanish_at_the_loss_scale_keeps_them(monkeypatch):
    lost, cosine, scaler = trained(True)
    assert not scaler.last_step.skipped
    assert lost == 0 and cosine > 0.9999
    (track,) = scaler.layerwise.tracks
    leaves = {track.plan.exponents[leaf] for leaf in track.graph.freed}
    assert len(leaves) == len(scaler.layerwise.tracks.latest.decision.scales) == 3
    assert "parameters with float32 masters keep the scale of their group" in str(
        scaler.layerwise.report()
    )
    assert trained(False)[0] == 1  # all of it, at the best a single scale can do from 2^16
    # The same plan with leaves at the loss scale loses them when they are stored.
    monkeypatch.setattr(stepping, "freed", lambda walk: (walk, {}))
    lost, _, scaler = trained(True)
    assert lost == 1
    assert "give them masters with `gradscale.half_precision`" in str(scaler.layerwise.report())


def test_a_resumed_run_goes_on_bit_for_bit():
    def pair(seed):
        model = network(seed)
        optimizer = OPTIMIZERS["AdamW foreach"](model.parameters())
        return model, optimizer, half_precision(model, optimizer)

    def train(model, optimizer, scaler, data):
        for x, y in data:
            optimizer.zero_grad()
            scaler.scale(F.mse_loss(model(x), y) * 2.0**-12).backward()
            scaler.step(optimizer)
            scaler.update()

    model, optimizer, half = pair(0)
    scaler = gradscale.GradScaler("cpu", layerwise=Layerwise(measure_every=2))
    train(model, optimizer, scaler, batches(3))
    states = [copy.deepcopy(s.state_dict()) for s in (model, optimizer, scaler)]
    train(model, optimizer, scaler, batches(4, seed=9))
    fresh = pair(7)
    fresh_scaler = gradscale.GradScaler("cpu", layerwise=Layerwise(measure_every=2))
    for target, state in zip((*fresh[:2], fresh_scaler), states, strict=True):
        target.load_state_dict(state)
    train(*fresh[:2], fresh_scaler, batches(4, seed=9))
    assert equal(fresh[2].parameters(), half.parameters())


def test_an_overflow_of_a_leaf_lowers_its_group_and_names_it():
    model = deep(layers=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    half_precision(model, optimizer)
    scaler = gradscale.GradScaler("cpu", layerwise=True)
    scaler.name_parameters(model)
    x = torch.randn(64, 32)
    for factor in (2.0**-8, 2.0**-8, 2.0**-8, 2.0**12):
        optimizer.zero_grad()
        scaler.scale(model(x).square().mean() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.last_step.reason == "overflow"
    assert {c.name for c in scaler.last_step.culprits} <= set(dict(model.named_parameters()))
    for _ in range(30):
        optimizer.zero_grad()
        scaler.scale(model(x).square().mean() * 2.0**12).backward()
        scaler.step(optimizer)
        scaler.update()
    assert not scaler.last_step.skipped


def test_a_pass_that_does_not_follow_the_plan_is_refused():
    model = network()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    half_precision(model, optimizer)
    scaler = gradscale.GradScaler("cpu", layerwise=random_plans(low=2, high=5))
    ((x, y),) = batches(1)
    for _ in range(2):
        optimizer.zero_grad()
        scaler.scale(F.mse_loss(model(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()
    optimizer.zero_grad()
    scaler.scale(F.mse_loss(model(x), y)).backward()
    with pytest.raises(RuntimeError, match=r"did not follow the plan of the one before.*zero_grad"):
        F.mse_loss(model(x), y).backward()


def test_two_graphs_in_one_step_add_up_at_one_exponent():
    def run(layerwise):
        model, optimizer, half, scaler = converted(layerwise)
        for x, y in batches(4):
            optimizer.zero_grad()
            scaler.scale(F.mse_loss(model(x), y)).backward()
            scaler.scale(model(x).sigmoid().sum() * 0.01).backward()
            scaler.step(optimizer)
            scaler.update()
        return list(half.parameters())

    assert equal(run(random_plans), run(None))


def test_leaves_without_a_master_and_float32_gradients_stay_at_the_loss_scale():
    model = network()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    half_precision(model, optimizer, gradients=torch.float32)
    scaler = gradscale.GradScaler("cpu", layerwise=random_plans())
    for x, y in batches(3):
        optimizer.zero_grad()
        scaler.scale(F.mse_loss(model(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()
    (track,) = scaler.layerwise.tracks
    assert track.graph.freed == frozenset()
    assert all(track.plan.exponents[leaf] == 0 for leaf in track.graph.leaves)


def test_gradients_divided_but_not_stepped_are_added_to_at_the_loss_scale():
    def run(layerwise):
        model, optimizer, half, scaler = converted(layerwise)
        for number, (x, y) in enumerate(batches(5)):
            scaler.scale(F.mse_loss(model(x), y)).backward()
            scaler.unscale_(optimizer)
            if number != 3:
                scaler.step(optimizer)
                optimizer.zero_grad()
            scaler.update()
        return list(half.parameters())

    assert equal(run(random_plans), run(None))


def test_gradients_cleared_to_zeros_take_the_exponents_of_the_next_plan():
    model = network()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    half_precision(model, optimizer)
    scaler = gradscale.GradScaler("cpu", layerwise=random_plans(), init_scale=2.0**9)
    exponents = []
    for x, y in batches(4):
        optimizer.zero_grad(set_to_none=False)
        scaler.scale(F.mse_loss(model(x), y)).backward()
        track = scaler.layerwise.tracks.latest
        here = {id(p): leaf for leaf, p in track.graph.parameters().items()}
        parameters = [p for p in model.parameters() if link_of(p) is not None]
        exponents.append([link_of(p).exponent for p in parameters])
        assert exponents[-1] == [track.plan.exponents[here[id(p)]] for p in parameters]
        scaler.step(torch.optim.SGD([model.norm.weight], lr=0.0))  # the others are thrown away
        scaler.update()
    assert exponents[-1] != exponents[-2]


def test_a_step_past_the_scaler_under_a_plan_is_refused():
    model, optimizer, _, scaler = converted(lambda: random_plans(low=2))
    for seed in range(3):
        ((x, y),) = batches(1, seed)
        optimizer.zero_grad()
        scaler.scale(F.mse_loss(model(x), y)).backward()
        if seed == 2:
            with pytest.raises(
                RuntimeError, match=r"`SGD\.step\(\)`.*under a plan.*scaler\.step\("
            ):
                optimizer.step()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.counters.skipped == 0
