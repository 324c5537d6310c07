"""Every command's tables fit the screen, narrow or wide, and a wide one shows them whole."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from invoking import call
from recordings import write_recording

MINE = """
import torch
from torch import nn

def step():
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(12)]
    model = nn.Sequential(*layers, nn.Linear(8, 4))
    batches = [(torch.randn(16, 8), torch.randint(4, (16,))) for _ in range(2)]
    return model, batches, loss

def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])
"""
TINY = "--device cpu --steps 2 --batch-size 8 --threads 1 --seeds 1 --loss-divisor 1".split()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "wide_step", raising=False)
    (tmp_path / "wide_step.py").write_text(MINE)
    write_recording(tmp_path / "mine" / "recording.jsonl", steps=60)
    return tmp_path


COMMANDS = {
    "recipes": ("recipes",),
    "compare": ("compare", "digits", *TINY, "--policy", "none,dynamic", "--out", "compared"),
    "inspect": ("inspect", "wide_step:step", "--steps", "1", "--out", "inspected"),
    "replay": ("replay", "mine", "--policy", "lognormal", "--policy", "dynamic(init_scale=2^20)"),
}


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 160])
@pytest.mark.parametrize("name", COMMANDS)
def test_output_fits(name, columns, folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    result = call(*COMMANDS[name])
    assert result.exit_code == 0, result.output
    # What is above the words: lines that are copied, and code, flow as they are.
    told = ("on cpu", "Written to", "For ", "pip install", "npm pack")
    lines = result.stdout.splitlines()
    end = next((i for i, line in enumerate(lines) if any(map(line.count, told))), len(lines))
    rows = lines[:end]
    assert len(rows) > 4 and max(map(len, rows)) <= columns
    assert not any(line.rstrip().endswith("…") or "…  " in line for line in rows), "cut off"
    if name == "inspect":
        assert ("headroom" in result.stdout) == (columns == 160)
    if name == "replay":
        assert ("exact" in rows[1]) == (columns == 160)


@pytest.mark.parametrize("command", ["train", "compare", "inspect", "replay", "report", "doctor"])
def test_help_fits_eighty_columns(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, call(command, "--help").stdout.splitlines())) <= 82
