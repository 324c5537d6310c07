"""Weights written past torch's count of changes are noticed, rarely and for next to nothing."""

import math
import warnings

import pytest
import torch
from torch import nn

import gradscale
from gradscale import half_precision
from gradscale.half import drift
from host_reads import HostReads


def critic(**settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 1))
    optimizer = torch.optim.RMSprop(model.parameters(), lr=0.05)
    half_precision(model, optimizer, **settings)
    return model, optimizer


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()


def test_the_weight_clipping_of_a_wgan_is_noticed_at_the_second_step_and_once():
    model, optimizer = critic()
    step(model, optimizer)
    for p in model.parameters():
        p.data.clamp_(-0.01, 0.01)
    message = r"`RMSprop.step\(\)`: 4 half-precision parameters, the first of shape \(8, 4\)"
    with pytest.warns(UserWarning, match=message + r".*with torch\.no_grad\(\): p\.clamp_"):
        step(model, optimizer)
    for _ in range(8):
        for p in model.parameters():
            p.data.clamp_(-0.01, 0.01)
        step(model, optimizer)


@pytest.mark.parametrize("saturate", [False, True])
def test_what_torch_sees_written_is_no_drift(saturate):
    model, optimizer = critic(saturate=saturate)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(9):
            step(model, optimizer)
            with torch.no_grad():
                for p in (model.parameters(), optimizer.param_groups[0]["params"])[number % 2]:
                    p.clamp_(-0.01, 0.01)


def test_weights_that_have_become_infinite_or_nan_are_no_drift():
    model, optimizer = critic()
    with torch.no_grad():
        master = optimizer.param_groups[0]["params"][0]
        master[0, 0], master[0, 1] = math.nan, 1e9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            step(model, optimizer)


def test_it_looks_at_steps_of_twice_the_number_and_never_waits(monkeypatch):
    looks = []
    compare = drift._apart
    monkeypatch.setattr(drift, "_apart", lambda link: looks.append(link) or compare(link))
    model, optimizer = critic()
    counts = []
    for _ in range(40):
        step(model, optimizer)
        counts.append(len(looks))
    links = 4
    before = [0, *counts]
    assert [n for n in range(1, 41) if counts[n - 1] != before[n - 1]] == [2, 4, 8, 16, 32]
    assert counts[-1] == 5 * links


def test_the_flags_are_read_once_they_have_arrived(monkeypatch):
    model, optimizer = critic()
    step(model, optimizer)
    model[0].weight.data.clamp_(-0.01, 0.01)
    monkeypatch.setattr(gradscale.host_copies.HostCopies, "arrived", property(lambda _: False))
    with HostReads() as reads:
        step(model, optimizer)
    assert reads.count == 0
    monkeypatch.undo()
    with pytest.warns(UserWarning, match=r"1 half-precision parameters"):
        step(model, optimizer)
