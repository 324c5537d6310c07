"""Why a step was skipped."""

import math

import pytest
import torch

from gradscale.outcomes.evidence import Evidence
from gradscale.outcomes.triage import find_culprits, find_reason
from gradscale.scaler import GradScaler

FINE, BAD = torch.ones(2), torch.tensor([1.0, math.nan])


@pytest.mark.parametrize(
    ("parameters", "losses", "inputs", "reason"),
    [
        ([FINE], [FINE], None, "overflow"),
        ([FINE], [FINE], [FINE], "overflow"),
        ([FINE], [BAD], None, "nonfinite_loss"),
        ([FINE], [FINE, BAD], None, "nonfinite_loss"),
        ([FINE], [BAD], [FINE], "nonfinite_loss"),
        ([FINE], [BAD], [FINE, BAD], "nonfinite_input"),
        ([FINE], [BAD], {"x": (FINE, [BAD])}, "nonfinite_input"),
        ([FINE, BAD], [BAD], [BAD], "nonfinite_parameter"),
        ([FINE, BAD], [FINE], [BAD], "overflow"),
        ([FINE], [], None, "overflow"),
        ([BAD], [], None, "nonfinite_parameter"),
        ([FINE], [BAD], ["text", 3, torch.tensor([1])], "nonfinite_loss"),
    ],
)
def test_the_deepest_cause_is_named(parameters, losses, inputs, reason):
    assert find_reason(parameters, losses, inputs) == reason


def model_and_optimizer(named=False):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    parameters = model.named_parameters() if named else model.parameters()
    return model, torch.optim.SGD(parameters, lr=0.1)


def train_step(scaler, model, optimizer, batch, **kwargs):
    optimizer.zero_grad()
    scaler.scale(model(batch).square().mean(), **kwargs).backward()
    scaler.step(optimizer)
    scaler.update()
    return scaler.last_step.reason


def test_each_cause_is_found_in_training():
    model, optimizer = model_and_optimizer()
    scaler = GradScaler("cpu", init_scale=8.0)
    bad = torch.full((2, 3), math.inf)
    assert train_step(scaler, model, optimizer, torch.ones(2, 3)) is None
    assert train_step(scaler, model, optimizer, bad) == "nonfinite_loss"
    assert train_step(scaler, model, optimizer, bad, inputs=[bad]) == "nonfinite_input"
    assert scaler.get_scale() == 8.0
    with torch.no_grad():
        model[1].bias.fill_(math.nan)
    assert train_step(scaler, model, optimizer, torch.ones(2, 3)) == "nonfinite_parameter"
    assert scaler.get_scale() == 8.0


def test_a_loss_that_only_overflows_when_scaled_is_the_scales_fault():
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    scaler = GradScaler("cpu", init_scale=2.0**100)
    scaled = scaler.scale((parameter * 1e30).exp().log().sum() * 0 + parameter.sum() * 1e30)
    scaler.update(2.0**100)
    loss = parameter.sum() * 1e30
    scaled = scaler.scale(loss)
    scaled.backward()
    assert torch.isinf(scaled)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.last_step.reason == "overflow" and scaler.get_scale() == 2.0**99


def test_names_come_from_the_model_the_optimizer_or_the_module_that_owns_the_parameters():
    for source in ("model", "optimizer", "owner"):
        model, optimizer = model_and_optimizer(named=source == "optimizer")
        scaler = GradScaler("cpu")
        if source == "model":
            scaler.name_parameters(model)
        scaler.scale(model(torch.ones(1, 3)).sum()).backward()
        model[1].weight.grad[0, 0] = math.inf
        scaler.step(optimizer)
        (culprit,) = scaler.last_step.culprits
        assert str(culprit) == "1.weight: 1 of 2 elements"


def test_parameters_of_no_module_are_told_by_their_index_and_how_to_name_them():
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    scaler = GradScaler("cpu")
    scaler.scale(sum(p.sum() for p in parameters)).backward()
    parameters[1].grad[0] = math.inf
    scaler.step(optimizer)
    scaler.update()
    (culprit,) = scaler.last_step.culprits
    assert str(culprit) == "group 0, parameter 1: 1 of 2 elements"
    assert "named after `scaler.name_parameters(model)`" in repr(scaler.last_step)


def test_gradients_that_are_gone_name_nobody():
    _, optimizer = model_and_optimizer()
    assert find_culprits(optimizer, {}) == []


def test_a_large_output_is_not_kept_for_triage():
    scaler = GradScaler("cpu")
    scaler.scale(torch.ones(1000))
    assert [loss.numel() for loss in scaler._step.evidence.losses] == [1]
    scaler.scale(torch.full((3,), math.inf))
    assert not torch.isfinite(scaler._step.evidence.losses[1])


def test_losses_whose_graphs_look_alike_are_told_apart_in_every_step():
    """The same operations, as many, and the same last leaf: only another first factor."""
    a, b, c = (torch.ones(2, requires_grad=True) for _ in range(3))
    for first, second in ((a, c), (c, a)):
        evidence = Evidence({})
        for factor in (first, second):
            evidence.note_loss((factor * b).sum())
        assert evidence.reaching([first]) == [0]
        assert evidence.reaching([second]) == [1]
        assert evidence.reaching([b]) == [0, 1]


def test_what_losses_lead_to_follows_those_that_are_added_and_forgotten():
    a, b, c = (torch.ones(2, requires_grad=True) for _ in range(3))
    evidence = Evidence({})
    for leaf in (a, b):
        evidence.note_loss((leaf * 2).sum())
    assert evidence.reaching([b]) == [1]
    evidence.note_loss((c * 2).sum())
    assert evidence.reaching([c]) == [2]
    evidence.forget(1, 0)
    assert evidence.reaching([b]) == [0] and evidence.reaching([c]) == [1]
