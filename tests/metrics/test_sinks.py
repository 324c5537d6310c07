"""Every sink against the real system: what it wrote is read back with the system's own reader."""

import json
import logging
import math
import os
import subprocess
import sys
import threading

import pytest

from gradscale.metrics import (
    JsonLines,
    Logging,
    LostShare,
    Metrics,
    MLflow,
    Prometheus,
    TensorBoard,
    WandB,
)
from wandb_files import READ_WANDB

TAKEN = Metrics(step=3, scale=1024.0, steps=4, groups=2, amax=0.25)
SKIPPED = Metrics(
    step=4,
    scale=1024.0,
    skipped=True,
    reason="overflow",
    steps=5,
    skipped_steps=1,
    consecutive=1,
    reasons={"overflow": 1},
    lost=LostShare(0.125, 2, "extrapolated"),
)
NAMES = {"scale", "log2_scale", "skipped", "skipped_steps", "consecutive", "groups"}


def test_tensorboard_reads_back_what_was_written(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorBoard(tmp_path)
    sink(TAKEN)
    sink(SKIPPED)
    sink.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {f"gradscale/{name}" for name in NAMES | {"amax", "lost_share"}} <= tags
    assert "gradscale/skipped_overflow" in tags
    log2_scale = events.Scalars("gradscale/log2_scale")
    assert [(event.step, event.value) for event in log2_scale] == [(3, 10.0), (4, 10.0)]
    assert [event.step for event in events.Scalars("gradscale/lost_share")] == [4]
    (text,) = events.Tensors("gradscale/skipped/text_summary")
    assert text.tensor_proto.string_val == [b"overflow"] and text.step == 4


def test_tensorboard_takes_a_writer_that_is_there_already(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    with tensorboard.SummaryWriter(str(tmp_path)) as writer:
        TensorBoard(writer, prefix="")(TAKEN)
    assert any(tmp_path.iterdir())


def test_tensorboard_refuses_what_is_neither():
    with pytest.raises(TypeError, match=r"`TensorBoard\(3\)` must be a folder or a SummaryWriter"):
        TensorBoard(3)


WANDB = """
import json, sys, wandb
from gradscale.metrics import Metrics, WandB
run = wandb.init(project="p", dir=sys.argv[1], mode="offline", settings=wandb.Settings(silent=True))
joined, alone = WandB(), WandB(prefix="own/", commit=True)
for index in range(3):
    skipped = index == 1
    joined(Metrics(index, 1024.0, skipped=skipped, reason="overflow" if skipped else None))
    run.log({"loss": float(index)})
for index in range(10, 13):
    joined(Metrics(index, 1024.0))
    run.log({"loss": float(index)}, step=index)  # an axis of the user's own stays as it is
alone(Metrics(step=20, scale=8.0))
run.finish()
print(run.settings.sync_dir)
"""


@pytest.mark.slow
def test_wandb_joins_the_rows_of_the_users_own_log(tmp_path):
    pytest.importorskip("wandb")
    quiet = {**os.environ, "WANDB_SILENT": "true", "WANDB_MODE": "offline"}
    for code in (WANDB, READ_WANDB):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            capture_output=True,
            text=True,
            env=quiet,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["loss"], row["gradscale/step"], row["_step"]) for row in rows[:3]] == [
        (0, 0, 0),
        (1, 1, 1),
        (2, 2, 2),
    ]
    assert rows[1]["gradscale/reason"] == "overflow" and rows[0]["gradscale/log2_scale"] == 10
    theirs = {row["_step"]: row["loss"] for row in rows if "loss" in row and row["_step"] > 2}
    assert theirs == {10: 10, 11: 11, 12: 12}
    assert [row["own/scale"] for row in rows if "own/step" in row] == [8]


def test_wandb_without_a_run_says_to_start_one():
    pytest.importorskip("wandb")
    with pytest.raises(RuntimeError, match=r"`WandB\(\)` found no run.*`wandb.init"):
        WandB()


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    yield mlflow
    mlflow.set_tracking_uri(None)


def test_mlflow_reads_back_what_was_logged(mlflow):
    with mlflow.start_run() as run:
        sink = MLflow()
        sink(TAKEN)
        sink(SKIPPED)
    client = mlflow.MlflowClient()
    history = client.get_metric_history(run.info.run_id, "gradscale/log2_scale")
    assert [(metric.step, metric.value) for metric in history] == [(3, 10.0), (4, 10.0)]
    last = client.get_run(run.info.run_id).data.metrics
    assert last["gradscale/lost_share"] == 0.125 and last["gradscale/skipped_overflow"] == 1


def test_mlflow_without_a_run_says_to_start_one(mlflow):
    with pytest.raises(RuntimeError, match=r"`MLflow\(\)` found no active run.*start_run"):
        MLflow()


def samples(path):
    parser = pytest.importorskip("prometheus_client.parser")
    families = list(parser.text_string_to_metric_families(path.read_text()))
    assert all(family.documentation for family in families)
    kinds = {family.name: family.type for family in families}
    values = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }
    return kinds, values


def test_prometheus_parses_what_was_written(tmp_path):
    path = tmp_path / "gradscale.prom"
    odd = 'a "quoted"\\ \n name'
    Prometheus(path, labels={"job": odd})(SKIPPED)
    kinds, values = samples(path)
    job = ("job", odd)
    assert values["gradscale_loss_scale", job] == 1024.0
    assert values["gradscale_step", job] == 4
    assert values["gradscale_steps_total", job] == 5
    assert values["gradscale_skipped_steps_total", job, ("reason", "overflow")] == 1
    assert values["gradscale_lost_share", job] == 0.125
    assert kinds["gradscale_loss_scale"] == "gauge" and kinds["gradscale_steps"] == "counter"
    Prometheus(path)(TAKEN)
    _, values = samples(path)
    assert values["gradscale_gradient_amax",] == 0.25
    assert ("gradscale_lost_share",) not in values


def test_prometheus_writes_numbers_that_are_not_finite(tmp_path):
    path = tmp_path / "gradscale.prom"
    Prometheus(path)(Metrics(step=0, scale=math.inf, amax=math.nan))
    _, values = samples(path)
    assert values["gradscale_loss_scale",] == math.inf
    assert math.isnan(values["gradscale_gradient_amax",])


def test_no_reader_ever_sees_half_a_prometheus_file(tmp_path):
    path = tmp_path / "gradscale.prom"
    sink = Prometheus(path)
    sink(Metrics(step=0, scale=1.0))
    whole = path.read_text().count("\n")
    stop = threading.Event()

    def write():
        step = 0
        while not stop.is_set():
            sink(Metrics(step=step, scale=2.0 ** (step % 30)))
            step += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        sizes = {path.read_text().count("\n") for _ in range(300)}
    finally:
        stop.set()
        writer.join()
    assert sizes == {whole}
    assert [file.name for file in tmp_path.iterdir()] == ["gradscale.prom"]


def test_prometheus_refuses_paths_and_labels_that_nobody_would_read(tmp_path):
    with pytest.raises(ValueError, match=r"must end in `\.prom`"):
        Prometheus(tmp_path / "metrics.txt")
    with pytest.raises(FileNotFoundError, match=r"there is no folder.*collector\.textfile"):
        Prometheus(tmp_path / "nowhere" / "gradscale.prom")
    for name in ("1st", "a-b", "__name", "reason"):
        with pytest.raises(ValueError, match=f"labels={{'{name}'"):
            Prometheus(tmp_path / "gradscale.prom", labels={name: "x"})


def test_json_lines_hold_every_field(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sink = JsonLines(path)
    sink(TAKEN)
    sink(SKIPPED)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["amax"] == 0.25 and lines[0]["lost"] is None
    assert lines[1]["reasons"] == {"overflow": 1}
    assert lines[1]["lost"] == {"lost_share": 0.125, "step": 2, "method": "extrapolated"}


def test_a_file_that_cannot_be_written_shows_when_the_sink_is_made(tmp_path):
    with pytest.raises(FileNotFoundError):
        JsonLines(tmp_path / "nowhere" / "metrics.jsonl")


def test_logging_says_a_skipped_step_louder(caplog):
    with caplog.at_level(logging.INFO, "gradscale"):
        sink = Logging()
        sink(TAKEN)
        sink(SKIPPED)
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert caplog.messages == [
        "step 3: scale 2^10, 0 of 4 steps skipped, 2 loss scales, largest gradient 0.25",
        "step 4: scale 2^10, skipped (overflow), 1 of 5 steps skipped, 12 % lost (extrapolated)",
    ]
    assert caplog.records[1].metrics is SKIPPED


@pytest.mark.parametrize(
    ("module", "make", "package"),
    [
        ("torch.utils.tensorboard", lambda path: TensorBoard(path), "tensorboard"),
        ("wandb", lambda path: WandB(), "wandb"),
        ("mlflow", lambda path: MLflow(), "mlflow"),
    ],
)
def test_a_missing_package_is_named_with_the_way_to_get_it(
    module, make, package, monkeypatch, tmp_path
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ImportError, match=f"needs {package}.*`pip install {package}`.*any function"
    ):
        make(tmp_path)
