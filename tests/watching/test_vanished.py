"""Tensors of zeros: lost behind what was almost lost, true behind what was large."""

from __future__ import annotations

import torch
from torch import nn

import gradscale


def three(scale: float, *, zero_weights: bool) -> gradscale.watching.WatchReport:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(16, 16) for _ in range(3)])
    with torch.no_grad():
        model[1].weight.mul_(0.0 if zero_weights else 2.0**-14)
    with gradscale.watch(model) as watch:
        with torch.autocast("cpu", torch.float16):
            out = model(torch.randn(8, 16))
        (out.float().sum() * scale).backward()
    return watch.report()


def lost(report: gradscale.watching.WatchReport) -> dict[str, float]:
    return {row.name: row.lost_share for row in report.in_order}


def test_what_vanishes_behind_a_weak_gradient_is_lost_whole_and_so_is_what_follows() -> None:
    report = three(2.0**-16, zero_weights=False)
    found = lost(report)
    assert found["0"] == found["0.weight"] == found["0.bias"] == 1.0
    assert found["2"] == 0.0
    (row,) = [row for row in report if row.name == "0"]
    assert (row.method, row.flushed, row.nonzero) == ("extrapolated", row.numel, row.numel)
    assert row.exponent == 0 and row.needs == 12


def test_zeros_behind_zero_weights_are_true() -> None:
    found = lost(three(1.0, zero_weights=True))
    assert found["0"] == found["0.weight"] == 0.0


def test_in_float32_nothing_has_vanished() -> None:
    model = nn.Linear(4, 4)
    with gradscale.watch(model) as watch:
        (model(torch.ones(2, 4)) * 0.0).sum().backward()
    assert watch.report().lost_share == 0.0
