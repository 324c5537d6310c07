"""`torch.set_default_dtype(torch.float64)` changes nothing of what a scaler does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradscale


@pytest.fixture(autouse=True)
def the_default_comes_back() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


def trained(default: torch.dtype, fused: bool, **options: Any) -> list[Tensor]:
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(64, 64), nn.GELU()) for _ in range(6)]
    model, x = nn.Sequential(*layers), torch.randn(1024, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    torch.set_default_dtype(default)
    scaler = gradscale.GradScaler("cpu", **options)
    for step in range(8):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = model(x).float().square().mean() * (1e-6 if step != 5 else float("inf"))
        scaler.scale(loss).backward()
        if not fused:
            scaler.clip_grad_norm_(optimizer, 1e-3)
        scaler.step(optimizer)
        scaler.update()
    return [*(p.detach().clone() for p in model.parameters()), torch.tensor(scaler.get_scale())]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layerwise": True},
        {"policy": gradscale.Guarded(gradscale.LogNormal())},
        {"policy": gradscale.Quantile()},
        {"policy": gradscale.TwoSided()},
        {"undo": "moments"},
    ],
    ids=["dynamic", "layerwise", "lognormal", "quantile", "two-sided", "moments"],
)
def test_a_run_has_the_same_bits(fused: bool, options: dict[str, Any]) -> None:
    plain = trained(torch.float32, fused, **options)
    wide = trained(torch.float64, fused, **options)
    for one, two in zip(plain[:-1], wide[:-1], strict=True):
        assert torch.equal(one, two)
    assert float(plain[-1]) == float(wide[-1])
