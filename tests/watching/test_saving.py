"""A watch that goes on from where one was saved measures the same steps, and judges alike."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradscale


def rows_by_step(steps: range, state: dict | None) -> tuple[dict, dict]:
    """The rows of each measured step, of a network with a bias whose gradient is zero in truth."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, affine=False), nn.Linear(8, 2))
    found: dict = {}
    with gradscale.watch(model, every=8) as watch:
        if state is not None:
            watch.load_state_dict(state)
        watch.on_measured(found.__setitem__)
        for step in steps:
            torch.manual_seed(step)
            model.zero_grad()
            model(torch.randn(16, 4)).square().sum().backward()
            watch.end_step()
        return found, watch.state_dict()


def test_a_resumed_watch_measures_the_steps_of_an_uninterrupted_one():
    whole, _ = rows_by_step(range(20), None)
    first, state = rows_by_step(range(7), None)
    second, _ = rows_by_step(range(7, 20), state)
    assert list(whole) == [0, 1, 2, 4, 8, 16] and list(second) == [8, 16]
    assert whole == first | second
    assert any(row.negligible for row in second[8] if row.name == "0.bias")


def test_a_state_of_something_else_is_refused():
    watch = gradscale.watch(nn.Linear(2, 1))
    with pytest.raises(ValueError, match=r"the state lacks passes, negligible. Pass what `watch"):
        watch.load_state_dict({"step": 3})
