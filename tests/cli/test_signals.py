"""Killed or interrupted in the middle, a comparison goes on bit for bit."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

OPTIONS = (
    "--device cpu --threads 1 --seeds 1 --steps 30 --batch-size 8 --policy dynamic "
    "--loss-divisor 1 --init-scale 2^40 --save-every 4"
).split()


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "gradscale.cli.main", "compare", *map(str, arguments)]


def finish(*arguments: str | Path) -> None:
    subprocess.run(command(*arguments), check=True, capture_output=True, timeout=200)


def contents(path: Path) -> dict[str, object]:
    """Every run's steps, as bytes, and weights."""
    found: dict[str, object] = {}
    for folder in path.glob("divisor-*/*/seed-*"):
        name = str(folder.relative_to(path))
        state = torch.load(folder / "checkpoint.pt", weights_only=True)
        found[name] = (folder / "steps.jsonl").read_bytes()
        found[f"{name}/weights"] = {k: v.tolist() for k, v in state["model"].items()}
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    path = tmp_path_factory.mktemp("whole") / "run"
    finish(*OPTIONS, "--out", path)
    return contents(path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])
def test_a_comparison_stopped_in_the_middle_resumes_bit_for_bit(number, whole, tmp_path):
    path = tmp_path / "run"
    child = subprocess.Popen(command(*OPTIONS, "--out", path), stderr=subprocess.PIPE, text=True)
    half = path / "divisor-1" / "fp16-dynamic" / "seed-0"
    deadline = time.monotonic() + 120
    while not (half / "checkpoint.pt").exists() and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    child.send_signal(number)
    _, errors = child.communicate(timeout=60)

    assert not (half / "result.json").exists(), "the run was over before the signal came"
    if number == signal.SIGINT:
        assert child.returncode == 130
        assert f"gradscale compare --resume {path}" in errors.replace("\n", "")
    finish("--resume", path)
    assert contents(path) == whole
