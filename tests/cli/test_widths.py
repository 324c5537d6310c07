"""Every command's tables fit the screen, narrow or wide, and a wide one shows them whole."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from gradscale.cli.group import gradscale
from gradscale.cli.prose import wrapped
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
    state = torch.amp.GradScaler("cpu").state_dict() | {"scale": 2.0**-30}
    torch.save({"scaler": state}, tmp_path / "checkpoint.pt")
    return tmp_path


COMMANDS = {
    "recipes": ("recipes",),
    "compare": ("compare", "digits", *TINY, "--policy", "none,dynamic", "--out", "compared"),
    "train": ("train", "digits", *TINY[:8], "--out", "trained"),
    "inspect": ("inspect", "wide_step:step", "--steps", "1", "--out", "inspected"),
    "replay": ("replay", "mine", "--policy", "lognormal", "--policy", "dynamic(init_scale=2^20)"),
    "report": ("report", "mine", "--force"),
    "doctor": ("doctor", "mine", "--against", "growth_interval=500"),
    "doctor, a checkpoint": ("doctor", "checkpoint.pt"),
}
COPIED = re.compile(
    r"Written to | *(scaler = |with torch\.|gradscale\.|optimizer|mkdir |sudo |npm )"
    r"|.*pip install"
)
"""What is copied from the screen stays a line, however long."""


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 160])
@pytest.mark.parametrize("name", COMMANDS)
def test_output_fits(name, columns, folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    result = call(*COMMANDS[name])
    assert result.exit_code == (name.startswith("doctor")), result.output
    lines = [line for line in result.stdout.splitlines() if not COPIED.match(line)]
    assert [line for line in lines if len(line.rstrip()) > columns] == []
    assert not any(line.rstrip().endswith("…") or "…  " in line for line in lines), "cut off"
    if name == "inspect":
        assert ("headroom" in result.stdout) == (columns == 160)
    if name == "replay":
        assert ("exact" in lines[1]) == (columns == 160)


def test_every_command_is_looked_at():
    assert {name.partition(",")[0] for name in COMMANDS} == set(gradscale.commands)


@pytest.mark.parametrize("columns", [40, 80])
def test_what_goes_on_in_the_next_line_stands_below_its_own(columns):
    text = "warning  What is wrong.\n         Because: " + "of what was seen " * 9
    lines = wrapped(text, columns).splitlines()
    assert max(map(len, lines)) <= columns and lines[0].startswith("warning  What")
    assert all(line.startswith(" " * 11) for line in lines[2:]) and len(lines) > 3


def test_a_pipe_has_no_width(folder, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    (line,) = [it for it in call("doctor", "checkpoint.pt").stdout.splitlines() if "Do: " in it]
    assert len(line) > 100


@pytest.mark.parametrize("command", ["", *gradscale.commands])
def test_help_fits_eighty_columns(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, call(*command.split(), "--help").stdout.splitlines())) <= 82
