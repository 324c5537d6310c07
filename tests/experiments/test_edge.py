"""The experiments on the edge: pure trainings, results that are kept, what they come to."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "edge"))

from edge import planned, trained
from strategy import TRUTH, Strategy
from summary import read
from tasks import TASKS
from training import Result, train


@pytest.mark.parametrize("name", list(TASKS))
def test_a_training_is_a_pure_function_of_its_arguments(name):
    task = replace(TASKS[name], steps=2)
    strategy = Strategy("fp16", "torch")
    value = task.values[0]
    first, second = (train(task, value, strategy, 3) for _ in range(2))
    assert replace(first, cpu_ms=0) == replace(second, cpu_ms=0)
    assert train(task, value, strategy, 4).loss != first.loss


def test_what_has_ended_is_not_trained_again(tmp_path):
    path = tmp_path / "units.jsonl"
    assert trained(path) == set()
    result = train(replace(TASKS["units"], steps=1), 0, TRUTH, 0)
    path.write_text("{}\n" + json.dumps(result.to_json()) + "\n")
    assert trained(path) == {(0, "fp32", 0)}


def test_a_plan_of_trainings_names_each_once_and_float32_first():
    for task in TASKS.values():
        for fast in (False, True):
            runs = [(v, s.label, seed) for v, s, seed in planned(task, 2, fast)]
            assert len(set(runs)) == len(runs)
            assert runs[0][1] == "fp32"


def line(strategy: str, seed: int, score: float) -> str:
    return json.dumps(Result(8, strategy, seed, score, 1.0, 0, 0.0, 1, 1.0).to_json())


def test_differences_to_float32_are_paired_by_seed(tmp_path):
    path = tmp_path / "some.jsonl"
    scores = {"fp32": (0.5, 0.75, 1.0), "fp16 torch": (0.25, 0.5, 0.75)}
    lines = [line(name, seed, s) for name, of in scores.items() for seed, s in enumerate(of)]
    path.write_text("\n".join(["{}", *lines]) + "\n")
    cell = read(path, worst=0.0).cells["fp16 torch"][8]
    assert (cell.score, cell.difference, cell.interval) == (0.5, -0.25, 0.0)


def test_a_training_that_ended_in_nan_counts_as_the_worst(tmp_path):
    path = tmp_path / "some.jsonl"
    lines = [line("fp32", 0, 0.9), line("fp16 torch", 0, math.nan)]
    path.write_text("\n".join(["{}", *lines]) + "\n")
    cell = read(path, worst=0.1).cells["fp16 torch"][8]
    assert cell.score == 0.1
    assert math.isinf(cell.interval), "one seed has no interval"
