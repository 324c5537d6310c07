"""A step that does not measure reads nothing on the host, whatever its plan."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from gradscale.backward.plan import ScalePlan
from gradscale.layerwise import Layerwise
from gradscale.plans.planner import UserGiven
from gradscale.scaler import GradScaler
from host_reads import HostReads

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "adamw": lambda p: torch.optim.AdamW(p),
    "fused adamw": lambda p: torch.optim.AdamW(p, fused=True),
}


def random_layerwise():
    generator = torch.Generator().manual_seed(3)
    planner = UserGiven(lambda graph, measurements: ScalePlan.random(graph, generator))
    return Layerwise(planner, measure_every=100)


def network(device="cpu"):
    torch.manual_seed(0)
    layers = [nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2)]
    model = nn.Sequential(*layers)
    return model if device == "cpu" else model.to(device)


def backward(model, scaler, device="cpu"):
    with torch.autocast(device, torch.float16):
        loss = model(torch.ones(3, 4, device=device)).float().square().mean()
    scaler.scale(loss).backward()


def step(model, optimizer, scaler, device="cpu"):
    optimizer.zero_grad()
    backward(model, scaler, device)
    scaler.step(optimizer)
    scaler.update()


def planned(steps=6, device="cpu", optimizer=OPTIMIZERS["sgd"]):
    """A model, its optimizer and a scaler under a random plan; the next step does not measure."""
    model = network(device)
    chosen = optimizer(model.parameters())
    scaler = GradScaler(device, init_scale=2.0**4, layerwise=random_layerwise())
    for _ in range(steps):
        step(model, chosen, scaler, device)
    (track,) = scaler.layerwise.tracks
    assert not track.plan.is_uniform and not scaler.layerwise.timing.now
    return model, chosen, scaler


def resumed(state, measuring):
    """In front of a fake model, a scaler that goes on with the plan of `planned`."""
    model = network()
    scaler = GradScaler("cpu", layerwise=random_layerwise())
    scaler.load_state_dict(state)
    scaler.layerwise.timing.now = measuring
    return model, scaler


def test_scaling_and_the_backward_pass_read_nothing_under_a_plan():
    state = planned()[2].state_dict()
    with FakeTensorMode():
        model, scaler = resumed(state, measuring=False)
        backward(model, scaler)
        assert all(parameter.grad is not None for parameter in model.parameters())
        (track,) = scaler.layerwise.tracks
        assert not track.plan.is_uniform and track._factors  # the plan was in force


def test_a_measuring_backward_pass_reads_nothing_either_only_the_next_plan_does():
    state = planned()[2].state_dict()
    with FakeTensorMode():
        model, scaler = resumed(state, measuring=True)
        backward(model, scaler)
        layerwise = scaler.layerwise
        assert layerwise.passes.measurings
        layerwise.update(scaler.last_step)
        with pytest.raises((DataDependentOutputException, RuntimeError)):
            layerwise.begin_step(scaler._scale)


def reads(optimizer, planning):
    """Host reads of each of three steps that do not measure."""
    if planning:
        model, chosen, scaler = planned(optimizer=OPTIMIZERS[optimizer])
        step(model, chosen, scaler)  # the first use of a plan; writes its factors
    else:
        model = network()
        chosen = OPTIMIZERS[optimizer](model.parameters())
        scaler = GradScaler("cpu", init_scale=2.0**4)
        for _ in range(7):
            step(model, chosen, scaler)
    counts = []
    for _ in range(1 if planning else 3):
        with HostReads() as seen:
            step(model, chosen, scaler)
        counts.append(seen.count)
    return counts


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_whole_step_under_a_plan_reads_as_often_as_without_layerwise_scaling(optimizer):
    (under_plan,) = reads(optimizer, planning=True)
    assert set(reads(optimizer, planning=False)) == {under_plan}


def test_a_new_plan_for_the_same_edges_keeps_the_factors_where_they_are():
    model, optimizer, scaler = planned()
    (track,) = scaler.layerwise.tracks
    step(model, optimizer, scaler)
    (_, before) = track.factors(track.graph)
    storage = before.factors[torch.device("cpu")].data_ptr()
    doubled = ScalePlan(tuple(2 * k for k in track.plan.exponents), track.plan.signature)
    track.plan = doubled
    plan, after = track.factors(track.graph)
    assert after is before and after.factors[torch.device("cpu")].data_ptr() == storage
    assert plan == doubled == after.plan


def test_a_new_plan_for_other_edges_gets_factors_of_its_own():
    scaler = planned()[2]
    (track,) = scaler.layerwise.tracks
    (_, before) = track.factors(track.graph)
    track.plan = ScalePlan.uniform(track.graph)
    assert track.factors(track.graph)[1].edges == ()
    track.plan = ScalePlan.of(track.graph, {track.graph.names.index("GeluBackward0"): 3})
    plan, after = track.factors(track.graph)
    assert after is not before and after.edges == plan.cuts(track.graph)


@pytest.mark.cuda
def test_a_fused_step_under_a_plan_never_waits_for_cuda():
    model, optimizer, scaler = planned(device="cuda", optimizer=OPTIMIZERS["fused adamw"])
    step(model, optimizer, scaler, "cuda")
    before = [p.detach().clone() for p in model.parameters()]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(model, optimizer, scaler, "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not any(map(torch.equal, before, model.parameters()))
