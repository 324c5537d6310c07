"""Per-layer statistics of a real training, read back from each tracker's own files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gradscale.metrics import MLflow, TensorBoard
from layers_worker import Seen, trained_into
from wandb_files import READ_WANDB

WORKER = Path(__file__).parents[1] / "layers_worker.py"


def check(seen: Seen) -> list[str]:
    """What was measured is worth reading back: three curves a layer, one of them losing."""
    assert {0, 2, 4} <= set(seen)
    names = sorted(seen[0])
    assert {name.split("/")[1] for name in names} == {"lost_share", "room", "exponent"}
    assert all(seen[0][name] == 8 for name in names if "/exponent/" in name)  # the scale is 2^8
    lost = [seen[0][name] for name in names if "/lost_share/" in name]
    assert min(lost) == 0 and max(lost) > 0
    return names


def test_tensorboard_holds_the_curves_of_every_layer(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    sink = TensorBoard(str(tmp_path))
    seen = trained_into(sink)
    sink.close()
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    for name in check(seen):
        tag = next(tag for tag in events.Tags()["scalars"] if tag.endswith(name))
        read = {event.step: event.value for event in events.Scalars(tag)}
        # TensorBoard keeps float32.
        assert read == pytest.approx({s: n[name] for s, n in seen.items() if name in n}, rel=1e-6)


def test_mlflow_holds_the_curves_of_every_layer(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    with mlflow.start_run() as run:
        seen = trained_into(MLflow())
    client = mlflow.MlflowClient()
    stored = client.get_run(run.info.run_id).data.metrics
    for name in check(seen):
        key = next(key for key in stored if key.endswith(name))
        history = client.get_metric_history(run.info.run_id, key)
        read = {metric.step: metric.value for metric in history}
        assert read == {step: numbers[name] for step, numbers in seen.items() if name in numbers}
    mlflow.set_tracking_uri(None)


@pytest.mark.slow
def test_wandb_holds_the_curves_of_every_layer(tmp_path):
    pytest.importorskip("wandb")
    paths = os.pathsep.join([str(WORKER.parent), os.environ.get("PYTHONPATH", "")])
    quiet = {"WANDB_SILENT": "true", "WANDB_MODE": "offline", "PYTHONPATH": paths}
    said = []
    for script in ([str(WORKER)], ["-c", READ_WANDB]):
        done = subprocess.run(
            [sys.executable, *script, str(tmp_path)],
            capture_output=True,
            text=True,
            env=os.environ | quiet,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    (line,) = (line for line in said[0].splitlines() if line.startswith("seen: "))
    seen = {int(step): n for step, n in json.loads(line.removeprefix("seen: ")).items()}
    rows = [json.loads(row) for row in said[1].splitlines()]
    for name in check(seen):
        curve = [value for row in rows for key, value in row.items() if key.endswith(name)]
        assert curve == [seen[step][name] for step in sorted(seen) if name in seen[step]]
