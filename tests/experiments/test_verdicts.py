"""Verdicts against outcomes: a task asked for as it would train, words and results paired."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "edge"))

from advised import model_step
from gradscale.truth import reference
from summary import read
from tasks import TASKS
from training import Result
from verdicts import BECAME, SAID, Asked, ask, became, main, tables, trained_formats


@pytest.mark.parametrize("name", ["units", "depth-lion", "mixture"])
def test_advice_sees_the_first_step_of_the_training(name):
    task = TASKS[name]
    value = task.values[0]
    model, batches, loss, _ = model_step(task, value, 3)
    twin = type(model)() if name != "depth-lion" else torch.nn.Sequential(*model)
    twin.load_state_dict(model.state_dict())
    before = vars(model)
    gradients = reference(twin, lambda m: loss(m, next(iter(batches))))
    torch.manual_seed(3)
    training = task.begin(value, 3)
    training.loss(0).backward()
    for parameter, found in zip(
        training.model.parameters(), gradients.parameters.values(), strict=True
    ):
        assert torch.equal(parameter.grad, found)
    assert vars(model) is before and all(p.grad is None for p in model.parameters())


def test_the_optimizer_of_a_copy_has_the_groups_and_settings_of_the_tasks():
    task = TASKS["depth-lion"]
    model, _, _, optimizer = model_step(task, 8, 0)
    parameters = [torch.nn.Parameter(p.detach().clone()) for p in model.parameters()]
    made = optimizer(parameters)
    assert type(made).__name__ == "Lion" and made.defaults["lr"] == 3e-4
    assert [id(p) for p in made.param_groups[0]["params"]] == [id(p) for p in parameters]


def found_in(folder: Path, scores: dict[str, float]):
    path = folder / "units.jsonl"
    results = [Result(8, label, 0, score, 1.0, 0, 0.0, 1, 1.0) for label, score in scores.items()]
    path.write_text("\n".join(["{}", *(json.dumps(r.to_json()) for r in results)]) + "\n")
    return read(path, worst=0.0)


def asked(said: str, difference: float | None = None) -> Asked:
    return Asked("units", 8, "fp16", said, "safe", (0.0, 0.0, 1.0), (0.1, 0.2, 0.9), 16, difference)


@pytest.mark.parametrize(
    ("torchs", "guarded", "layerwise", "difference", "then"),
    [
        (0.88, 0.1, 0.9, None, 0),
        (0.1, 0.88, 0.9, None, 1),
        (0.1, 0.1, 0.9, -0.01, 1),
        (0.1, 0.1, 0.9, -0.5, 2),
        (0.1, 0.1, 0.1, None, 3),
    ],
)
def test_the_simplest_that_trained_as_float32_did_is_what_became_of_it(
    tmp_path, torchs, guarded, layerwise, difference, then
):
    scores = {
        "fp32": 0.9, "fp16 none": 0.9, "fp16 torch": torchs, "fp16 guarded": guarded,
        "fp16 layerwise": layerwise, "fp16 adaptive": 0.9,
    }  # fmt: skip
    found = found_in(tmp_path, scores)
    assert became(asked(SAID[1], difference), found) == BECAME[then]
    assert list(trained_formats(found, 8)) == ["fp16"]


def test_the_table_counts_what_was_said_against_what_became_of_it(tmp_path):
    scores = {"fp32": 0.9, "fp16 torch": 0.1, "fp16 guarded": 0.1, "fp16 layerwise": 0.9}
    found = {"units": found_in(tmp_path, scores)}
    text = tables([asked("a plan")], found)
    assert "1 cases of 1 tasks (units)" in text and "1 on the diagonal" in text
    assert "| a plan |  |  | 1 |  |" in text and "off the diagonal" not in text
    text = tables([asked("the default scale")], found)
    assert "0 on the diagonal" in text
    assert "| units at 8, fp16 | the default scale | only layer-wise | 1 | 0%, 0%, 100% |" in text


def test_what_float32_does_not_learn_is_left_out(tmp_path):
    scores = {"fp32": 0.0, "fp16 torch": 0.0, "fp16 layerwise": 0.0}
    text = tables([asked("a plan")], {"units": found_in(tmp_path, scores)})
    assert "0 cases of 0 tasks" in text


def test_a_task_without_results_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["verdicts.py", "nonsense"])
    with pytest.raises(SystemExit):
        main()
    assert "`nonsense` has no results. Pass some of units, " in capsys.readouterr().err


def test_two_losses_far_apart_need_a_plan_and_near_ones_do_not(tmp_path):
    scores = {"fp32": 0.9, "fp16 torch": 0.1, "fp16 layerwise": 0.9}
    found = found_in(tmp_path, scores)
    said = {value: next(ask(TASKS["units"], value, ["fp16"], found)).said for value in (0, 20)}
    assert said == {0: SAID[0], 20: SAID[2]}
