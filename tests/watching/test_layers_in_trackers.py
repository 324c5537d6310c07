"""Every layer in the trackers: a real TensorBoard; W&B and MLflow by what they are sent."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import gradscale
from fading import Fading, fading_batch
from gradscale.metrics import layer_numbers, layers_to


def train(tracker, steps=4, layerwise=True):
    """Watches a network of 13 layers, every second step."""
    model = Fading()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    scaler = gradscale.GradScaler("cpu", layerwise=layerwise)
    seen = []
    with gradscale.watch(model, scaler, every=2) as watch:
        watch.on_measured(layers_to(tracker))
        watch.on_measured(lambda step, rows: seen.append((step, layer_numbers(rows))))
        for number in range(steps):
            x, y = fading_batch(number)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = torch.nn.functional.cross_entropy(model(x).float(), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    return seen


class Kept:
    def __init__(self):
        self.written = []

    def write(self, step, numbers):
        self.written.append((step, numbers))


def test_each_parameter_has_three_curves_on_measuring_steps():
    kept = Kept()
    assert train(kept) == kept.written
    assert [step for step, _ in kept.written] == [0, 1, 2]  # 1 because the plan measures, too
    numbers = kept.written[-1][1]
    names = [name for name, _ in Fading().named_parameters()]
    rows = {name.split("/", 2)[2] for name in numbers}
    assert rows <= set(names) and len(rows) >= 13
    assert len(numbers) == 3 * len(rows)
    lost = [value for name, value in numbers.items() if "/lost_share/" in name]
    assert max(lost) < 1e-3 and all(0 <= value <= 1 for value in lost)


def test_with_one_scale_the_curves_of_layers_that_are_flushed_whole_end():
    planned, single = Kept(), Kept()
    train(planned)
    train(single, layerwise=False)
    assert len(single.written[-1][1]) <= len(planned.written[-1][1]) - 3 * 3


def test_zeros_and_other_kinds_are_left_out():
    def row(**facts):
        given = {"name": "a", "kind": "parameter", "lost_share": 0.5, "headroom": 2.0}
        return SimpleNamespace(**{**given, "exponent": 3, "negligible": False, **facts})

    rows = [row(headroom=torch.inf), row(negligible=True), row(kind="module")]
    assert layer_numbers(rows) == {}
    assert set(layer_numbers(rows, kinds=("module",))) == {
        "layers/lost_share/a",
        "layers/room/a",
        "layers/exponent/a",
    }


def test_tensorboard_has_a_curve_a_layer(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = gradscale.metrics.TensorBoard(tmp_path)
    seen = train(tracker)
    tracker.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    step, numbers = seen[-1]
    for name, value in numbers.items():
        curve = events.Scalars(f"gradscale/{name}")
        assert curve[-1].step == step and curve[-1].value == pytest.approx(value, rel=1e-6)


class Run:
    """Stands for what `wandb.init` returns; test_sinks.py has a real one that is offline."""

    def __init__(self):
        self.rows = []

    def define_metric(self, name, **settings):
        pass

    def log(self, row, commit):
        self.rows.append((row, commit))


def test_weights_and_biases_has_them_over_its_own_axis():
    run = Run()
    seen = train(gradscale.metrics.WandB(run, commit=True))
    for (row, commit), (step, numbers) in zip(run.rows, seen, strict=True):
        assert row.pop("gradscale/step") == step and commit
        assert row == {f"gradscale/{name}": value for name, value in numbers.items()}


class Server:
    """Stands for the module mlflow, whose file store takes seconds to begin."""

    def __init__(self):
        self.logged = []

    def log_metrics(self, metrics, step, run_id):
        self.logged.append((step, metrics))


def test_mlflow_is_sent_them_once_a_measuring_step():
    server = Server()
    seen = train(gradscale.metrics.MLflow("a1", mlflow=server))
    expected = [(s, {f"gradscale/{k}": v for k, v in numbers.items()}) for s, numbers in seen]
    assert server.logged == expected


def test_a_sink_without_names_is_refused():
    with pytest.raises(TypeError, match=r"layers_to\(JsonLines\).*`TensorBoard`, `WandB`"):
        layers_to(gradscale.metrics.JsonLines("/dev/null"))
