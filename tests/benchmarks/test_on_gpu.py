"""The script of all that needs a GPU, where there is none."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "on_gpu.sh"
STAGES = re.findall(r"^# (\w+) {2,}\w", SCRIPT.read_text(), re.MULTILINE)


def call(*arguments, **settings):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable, **settings}
    return subprocess.run([SCRIPT, *arguments], env=environment, text=True, capture_output=True)


@pytest.mark.parametrize("stage", ["tests", "real"])
def test_without_a_gpu_nothing_is_run(stage, tmp_path):
    done = call(stage, OUT=str(tmp_path / "out"))
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert "No GPU that torch can use, so nothing was run." in done.stderr


def test_a_python_without_torch_is_named(tmp_path):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    done = call("speed", OUT=str(tmp_path / "out"), PYTHON=str(bare), PYTHONPATH="")
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert f"{bare} has no torch, which everything here needs." in done.stderr


def test_without_a_stage_it_says_what_there_is():
    done = call("everything")
    assert done.returncode == 2
    assert all(f"\n{stage} " in done.stdout for stage in STAGES)
    assert done.stdout.endswith("DEVICE=cpu ROUNDS=2 PATIENCE=9.\n")


def test_make_gpu_runs_all_stages_and_the_scripts_are_there():
    assert f"for stage in {' '.join(STAGES)}; do" in (ROOT / "Makefile").read_text()
    for name in re.findall(r"^  benchmark (\w+)", SCRIPT.read_text(), re.MULTILINE):
        assert (ROOT / "benchmarks" / f"{name}.py").exists()


def test_results_that_lie_there_are_not_measured_again(tmp_path):
    for name in ("step-cpu", "clip-cpu", "widen-cpu"):
        (tmp_path / f"{name}.json").write_text("{}")
    done = call("speed", OUT=str(tmp_path), DEVICE="cpu")
    assert done.returncode == 0
    assert done.stdout.count("its result lies in") == 3
