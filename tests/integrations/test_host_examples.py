"""Each example of a host runs as its user would run it, and is short."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hosts import host

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples" / "integrations").glob("*.py"))
TRAINERS = [path for path in EXAMPLES if path.stem.startswith("with_")]
NEEDS = {
    "with_accelerate": "accelerate",
    "with_deepspeed": "deepspeed",
    "with_fastai": "fastai.callback.fp16",
    "with_ignite": "ignite",
    "with_keras": "keras",
    "with_lightning": "lightning",
    "with_monai": "monai",
    "with_skorch": "skorch",
    "with_sentence_transformers": "sentence_transformers",
    "with_transformers": "transformers",
    "with_trl": "trl",
}
"""What an example imports beside torch."""


@pytest.mark.parametrize("script", TRAINERS, ids=lambda path: path.stem)
def test_an_example_of_a_host_runs(script, tmp_path):
    if script.stem in NEEDS:
        host(NEEDS[script.stem])
    run = [sys.executable, str(script), "--steps", "4"]
    done = subprocess.run(
        run, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_of_a_host_is_under_100_lines(script):
    assert len(script.read_text().splitlines()) < 100


def test_ranks_of_a_lightning_trainer_skip_what_one_of_them_must_skip(tmp_path):
    host("lightning")
    script = ROOT / "examples" / "integrations" / "with_lightning.py"
    run = [sys.executable, str(script), "--steps", "4", "--devices", "2"]
    done = subprocess.run(
        run, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        # Two processes write at once: their lines may run into one another.
        said = rf"rank {rank}: Counters\((.*?)\), (\d+) steps of the schedule"
        ((counters, steps),) = re.findall(said, done.stdout)
        assert "skipped=1" in counters and steps == "3"


@pytest.mark.slow
def test_ranks_of_a_reinforcement_learner_skip_alike_and_save_their_scaler(tmp_path):
    script = ROOT / "examples" / "integrations" / "rl_fsdp2.py"
    run = [sys.executable, str(script), "--steps", "4"]
    done = subprocess.run(
        run, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        ((counters, steps),) = re.findall(
            rf"rank {rank}: Counters\((.*?)\), (\d+) steps of the schedule", done.stdout
        )
        assert "steps=4, skipped=1" in counters and "nonfinite_loss" in counters and steps == "3"
    assert "off by" in done.stdout and "skipped: OptimizerOutcome" in done.stdout
