"""What `truth`, `advise`, `watch` and a recording say of one network, format and batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradscale
from gradscale.emulation.computing import computing_in
from gradscale.truth import measure_lost

BATCH = torch.randn(64, 16, generator=torch.Generator().manual_seed(5))
TARGET = torch.randint(4, (64,), generator=torch.Generator().manual_seed(6))
WATCHED = 0.08
"""How far `watch`, which sees a single pass and estimates what it cannot count, may be off."""


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(32, 32), nn.GELU()) for _ in range(4)]
    return nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), *layers, nn.Linear(32, 4))


@pytest.mark.parametrize("format", ["fp16", "e5m2", "e4m3"])
@pytest.mark.parametrize("log2_scale", [-14, -8, -2])
def test_all_tools_agree_on_what_was_lost(format: str, log2_scale: int, tmp_path: Path) -> None:
    def plain(model: nn.Module, batch: Tensor = BATCH) -> Tensor:
        return F.cross_entropy(model(batch), TARGET) * 2.0**log2_scale

    def emulated(model: nn.Module) -> Tensor:
        with computing_in(format, "cpu", "on"):
            return plain(model)

    truth = measure_lost(network(), emulated)
    assert truth.format == format

    advice = gradscale.advise((network(), [BATCH], plain), formats=format, steps=1, emulate="on")
    assert advice[format].none.lost_share == truth.lost_share

    model = network()
    with (
        gradscale.watch(model) as watching,
        gradscale.Recorder(tmp_path / "run", watch=watching, format=format) as recorder,
    ):
        emulated(model).backward()
        recorder.step()
    watched = watching.report().lost_share
    assert watched == pytest.approx(truth.lost_share, abs=WATCHED)
    (step,) = gradscale.recording.read(tmp_path / "run").steps
    assert step.seen.lost_share == pytest.approx(watched, rel=1e-4)
