"""What `scaler.layerwise.report()` is: modules everywhere, as values and as sentences."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from torch import nn

import gradscale
from gradscale.emulation import emulate


def deep() -> nn.Module:
    layers = [nn.Sequential(nn.Linear(16, 16), nn.GELU()) for _ in range(20)]
    return nn.Sequential(*layers, nn.Linear(16, 4))


def trained(model: nn.Module, *, named: bool = False, half: bool = False) -> gradscale.GradScaler:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters())
    if half:
        gradscale.half_precision(model, optimizer)
    scaler = gradscale.GradScaler("cpu", layerwise=True)
    if named:
        scaler.name_parameters(model)
    for _ in range(4):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16, enabled=not half), emulate():
            loss = model(torch.randn(8, 16)).float().square().mean() * 2.0**-10
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return scaler


@pytest.mark.parametrize("half", [False, True])
def test_it_speaks_of_modules_without_being_told_the_model(half: bool) -> None:
    model = deep()
    report = trained(model, half=half).layerwise.report()
    assert len(report) == 1 and not report[-1].one_is_enough
    names = {module for group in report[-1].groups for module in group.modules}
    assert names == {*(f"{i}.0" for i in range(20)), "20"}
    assert "node " not in re.sub(r"\d+ nodes?\b", "", str(report))
    assert re.search(r"2\^\d+ for \d+\.0 … \d+\.0 \(\d+ modules, \d+ nodes\)", str(report))


def test_it_says_the_same_with_and_without_the_name() -> None:
    torch.manual_seed(1)
    models = [deep() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    told = str(trained(models[0], named=True).layerwise.report())
    assert told == str(trained(models[1]).layerwise.report())


def test_values_and_sentences_are_of_one_decision() -> None:
    model = deep()
    scaler = trained(model)
    report = scaler.layerwise.report()
    (structure,) = report
    decision = scaler.layerwise.tracks.latest.decision
    assert [group.exponent for group in structure.groups] == [g.exponent for g in decision.groups]
    assert structure.log2_scale == decision.log2_scale == int(math.log2(scaler.get_scale()))
    assert structure.scales == tuple(sorted({*decision.scales, decision.log2_scale}))
    assert f"{len(structure.scales)} loss scales are needed" in str(report)
    told = json.loads(json.dumps(report.to_dict()))
    assert told["structures"][0]["groups"][0]["modules"] == list(structure.groups[0].modules)
    assert told["functions"] == [] and report[:1] == (structure,)


def test_without_any_model_a_node_is_never_a_bare_number() -> None:
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.empty(16, 16).uniform_(-0.25, 0.25)) for _ in range(20)]
    optimizer = torch.optim.SGD(weights, lr=0.0)
    scaler = gradscale.GradScaler("cpu", layerwise=True)
    for _ in range(3):
        x = torch.randn(8, 16)
        with torch.autocast("cpu", torch.float16), emulate():
            for weight in weights:
                x = nn.functional.gelu(x @ weight + 0.1)
            loss = x.float().square().mean() * 2.0**-10
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    text = str(scaler.layerwise.report())
    for label in re.findall(r"node \d+ \([^)]*\)?", text):
        assert "a parameter of shape (16, 16)" in label, text
    assert "loss scales are needed" in text and scaler.layerwise.report()[0].groups[0].modules == ()


def test_before_anything_is_measured_it_is_empty_and_says_so() -> None:
    report = gradscale.GradScaler("cpu", layerwise=True).layerwise.report()
    assert len(report) == 0 and str(report) == "nothing has been measured yet"


def test_a_skipped_step_of_a_watched_model_names_its_parameters() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = gradscale.GradScaler("cpu")
    with gradscale.watch(model, scaler):
        scaler.scale(model(torch.full((1, 2), math.inf)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert "0.weight: 4 of 4 elements" in repr(scaler.last_step)
