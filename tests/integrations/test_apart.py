"""Hosts that are kept apart from the others: real training runs, or their source read."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hosts import apart

FOLDER = apart()
WORKER = Path(__file__).parents[1] / "apart_worker.py"


def trained(host: str, where: Path) -> dict[str, Any]:
    """What a process of its own tells of a training run with that host."""
    paths = [*map(str, (WORKER.parent, FOLDER)), os.environ.get("PYTHONPATH", "")]
    settings = {"PYTHONPATH": os.pathsep.join(paths), "YOLO_OFFLINE": "true", "MPLBACKEND": "agg"}
    settings |= {"YOLO_CONFIG_DIR": str(where), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(WORKER), host],
        cwd=where,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("told: "))
    told = json.loads(line.removeprefix("told: "))
    assert told["steps"] == 6 and told["finite"]
    return told


def test_timms_native_scaler_loses_nothing_clips_a_fused_optimizer_and_is_saved(tmp_path):
    told = trained("timm", tmp_path)
    assert told["reasons"] == {"nonfinite_loss": 1} and told["dead"] == 0 and told["resumed"]
    assert told["said"].startswith("<gradscale in NativeScaler: _scaler; ")


def test_open_clips_epoch_takes_our_scaler_and_outlives_a_bad_batch(tmp_path):
    # The first scale of all, 2^16, is too high for it; then comes the bad batch.
    assert trained("open_clip", tmp_path)["reasons"] == {"overflow": 1, "nonfinite_loss": 1}


def test_speechbrains_brain_fits_and_saves_the_scaler_that_trains(tmp_path):
    told = trained("speechbrain", tmp_path)
    assert told["reasons"] == {"nonfinite_loss": 1} and told["saved"]
    assert "checkpointer" in told["said"]


def test_ultralytics_trains_saves_our_state_and_averages_no_skipped_step(tmp_path):
    told = trained("ultralytics", tmp_path)
    assert told["reasons"] == {"overflow": 1} and told["saved"]
    assert told["averaged"] == [1, 2, 3, 3, 4, 5]
    assert "EMA" in told["said"]


def calls(path: str, function: str, slot: str) -> list[str]:
    """What a function of a host calls of its scaler, in the order of the source."""
    tree = ast.parse((FOLDER / path).read_text())
    inside = [
        node
        for place in ast.walk(tree)
        if isinstance(place, ast.FunctionDef) and place.name == function
        for node in ast.walk(place)
    ]
    found = [
        node
        for node in inside
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value).endswith(slot)
    ]
    found.sort(key=lambda call: (call.lineno, call.col_offset))
    return [call.func.attr for call in found if isinstance(call.func, ast.Attribute)]


READ = [
    (
        "nnunetv2/training/nnUNetTrainer/nnUNetTrainer.py",
        {"train_step": ["scale", "unscale_", "step", "update"]},
    ),
    ("nerfstudio/engine/optimizers.py", {"optimizer_scaler_step_all": ["unscale_", "step"]}),
    (
        "nerfstudio/engine/trainer.py",
        {"train_iteration": ["scale", "get_scale", "update", "get_scale"]},
    ),
    (
        "composer/trainer/trainer.py",
        {
            "_train_microbatch": ["scale"],
            "_train_microbatches": ["unscale_"],
            "_train_batch": ["step", "step"],
            "_train_loop": ["update"],
        },
    ),
]


@pytest.mark.parametrize(
    ("path", "functions"), READ, ids=[path.partition("/")[0] for path, _ in READ]
)
def test_a_host_that_is_imitated_calls_its_scaler_as_the_imitation_does(path, functions):
    slot = "grad_scaler" if "composer" not in path else "scaler"
    assert {name: calls(path, name, slot) for name in functions} == functions
