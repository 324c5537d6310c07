"""The experiments on the edge: pure trainings, results that are kept, what they come to."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "edge"))

import torch

import gradscale
from claims import BEST, learned
from claims import table as claims
from details import details
from edge import close, planned, trained
from gradscale.backward import BackwardGraph
from gradscale.formats import FloatFormat
from gradscale.policies import Static
from gradscale.truth import Gradients
from hosts import host
from lamb import Lamb
from lost import gradients, lost_shares
from pages import section
from scaled_flow import TARGET, ScaledFlow
from strategy import OWN, RULES, TRUTH, Strategy
from summary import is_near, read
from task import Task
from tasks import TASKS
from training import Result, begun, run, train


def task_of(name: str, steps: int) -> Task:
    """The task, shorter; its test is skipped where its package is not, and must not be."""
    if TASKS[name].needs is not None:
        host(TASKS[name].needs)
    return replace(TASKS[name], steps=steps)


@pytest.mark.parametrize("name", list(TASKS))
def test_a_training_is_a_pure_function_of_its_arguments(name):
    task = task_of(name, 2)
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


def line(strategy: str, seed: int, score: float, course: tuple[float, ...] = ()) -> str:
    result = Result(8, strategy, seed, score, 1.0, 0, 0.0, 1, 1.0, course=course)
    return json.dumps(result.to_json())


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


def test_steps_to_a_target_are_those_to_float32s_loss_at_three_quarters(tmp_path):
    path = tmp_path / "some.jsonl"
    courses = {"fp32": (4, 3, 2, 1), "fp16 torch": (4, 2, 2, 2), "e5m2 torch": (4, 3, 3, 3)}
    lines = [line(name, 0, 0.5, course) for name, course in courses.items()]
    path.write_text("\n".join(["{}", *lines]) + "\n")
    found = read(path, worst=0.0)
    assert [found.cells[name][8].target for name in courses] == [0.75, 0.5, math.inf]
    shown = details(found, list(courses))
    assert "| fp16 torch | 50 % | 0 | 1 |" in shown, "nothing is known of what was lost"
    assert "| e5m2 torch | never | 0 | 1 |" in shown


def test_old_lines_without_a_course_have_no_target(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text("{}\n" + line("fp32", 0, 0.9) + "\n")
    found = read(path, worst=0.0)
    assert math.isnan(found.cells["fp32"][8].target)
    assert "target |" not in details(found, ["fp32"])


def test_what_is_lost_is_counted_apart_for_weights_and_inputs():
    first, second = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 1, bias=False)
    model = torch.nn.Sequential(first, second)
    with torch.no_grad():
        first.weight.fill_(1.0)
        second.weight.copy_(torch.tensor([[1.0, 2.0**-20]]))

    def loss():
        return 2.0**-10 * model(torch.ones(1, 2)).sum()

    true = gradients(model, loss, torch.Tensor.backward)
    held = Gradients(dict(true.parameters), dict(true.modules), set(true.products))
    # What arrives at the first layer is 2^-10 and 2^-30: the product reads the second as zero.
    assert lost_shares(true, held, FloatFormat.of("fp16")) == (0.0, 1 / 3)
    held.parameters["0.weight"] = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert lost_shares(true, held, FloatFormat.of("fp16"))[0] == 1 / 3


def test_the_backward_pass_inside_a_loss_is_no_part_of_what_arrives():
    model = torch.nn.Linear(2, 1, bias=False)

    def loss():
        x = torch.ones(1, 2, requires_grad=True)
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return 3 * slope.sum() + 5 * model(x).sum()

    found = gradients(model, loss, torch.Tensor.backward)
    assert [grad.tolist() for grad in found.modules.values()] == [[[5.0]]]
    assert found.parameters["weight"].tolist() == [[8.0, 8.0]]


def test_lamb_takes_steps_as_long_as_the_weights_times_its_rate():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(4, 3))
    before, length = weight.detach().clone(), float(weight.detach().norm())
    optimizer = Lamb([weight], lr=0.5, eps=0.0)
    for scale in (1.0, 2.0**-40):
        weight.data.copy_(before)
        optimizer.state.clear()
        weight.grad = scale * torch.ones(4, 3)
        optimizer.step()
        moved = before - weight.detach()
        torch.testing.assert_close(moved, torch.full((4, 3), 0.5 * length / 12**0.5))


@pytest.mark.parametrize("scaling", RULES)
def test_every_published_rule_is_a_strategy_of_its_own(scaling):
    task = replace(TASKS["units"], steps=2)
    assert math.isfinite(train(task, 12, Strategy("fp16", scaling), 0).score)


@pytest.mark.parametrize("scaling", ["dynamic", "layerwise"])
@pytest.mark.parametrize("name", list(TASKS))
def test_every_task_can_be_trained_with_weights_and_gradients_in_float16(name, scaling):
    task = task_of(name, 2)
    training, way = begun(task, task.values[0], Strategy("half", scaling), 0)
    assert all(math.isfinite(loss) for loss in run(training, way, task.steps).losses)
    training.optimizer.zero_grad()
    with way.computing():
        way.backward(training.loss(task.steps))
    matrices = [p for p in training.model.parameters() if p.grad is not None and p.dim() > 1]
    assert {p.dtype for p in matrices} == {torch.float16}
    assert {p.grad.dtype for p in matrices} == {torch.float16}


@pytest.mark.parametrize(
    "name, scaling", [(task.name, scaling) for task in TASKS.values() for scaling in task.own]
)
def test_a_network_that_is_written_anew_learns_without_a_scaler(name, scaling):
    task = task_of(name, 24)
    training, way = begun(task, task.values[0], Strategy("fp16", scaling), 0)
    losses = run(training, way, task.steps).losses
    assert way.scaler is None
    assert sum(losses[-6:]) < 0.95 * sum(losses[:6])


@pytest.mark.parametrize("scaling", OWN)
def test_only_tasks_that_are_written_so_offer_a_scaling_of_their_own(scaling):
    strategy = Strategy("fp16", scaling)
    for task in TASKS.values():
        named = {strategy.label for _, strategy, _ in planned(task, 1)}
        assert (strategy.label in named) == task.offers(strategy) == (scaling in task.own)
    with pytest.raises(ValueError, match=f"`mixture` is not written for the scaling `{scaling}`"):
        train(TASKS["mixture"], 0, strategy, 0)


def test_a_scale_for_every_step_of_a_solver_changes_no_bit_in_float32():
    def gradients(scaling: str):
        torch.manual_seed(0)
        training = TASKS["ode"].training(Strategy("fp16", scaling), 4, 0)
        training.loss(0).backward()
        return [parameter.grad for parameter in training.model.parameters()]

    for one, other in zip(gradients("none"), gradients("per-step"), strict=True):
        assert torch.equal(one, other)


def test_the_adjoint_enters_every_step_of_a_solver_at_its_target():
    seen = []
    flow = torch.nn.Linear(3, 3)
    flow.register_full_backward_pre_hook(lambda _, gradients: seen.append(gradients[0]))

    class Timed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.flow = flow

        def forward(self, time, state):
            return self.flow(state)

    scaled = ScaledFlow(Timed())
    for amax in (2.0**-60, 2.0**5, 0.0):
        state = torch.ones(2, 3, requires_grad=True)
        (amax * scaled(torch.tensor(0.0), state)).sum().backward()
        assert seen.pop().abs().max() == (TARGET if amax else 0.0)
        torch.testing.assert_close(state.grad, amax * flow.weight.sum(0).expand(2, 3))


def results(tmp_path: Path, scores: dict[str, tuple[float, ...]]):
    """Of the task `units`, at one value of its knob."""
    path = tmp_path / "some.jsonl"
    lines = [line(name, seed, s) for name, of in scores.items() for seed, s in enumerate(of)]
    path.write_text("\n".join(["{}", *lines]) + "\n")
    return [(TASKS["units"], read(path, worst=0.0))]


def test_claims_count_what_three_seeds_tell_apart(tmp_path):
    scores = {
        "fp32": (0.80, 0.90, 1.0),
        "fp16 torch": (0.70, 0.80, 0.89),
        "fp16 layerwise": (0.80, 0.90, 0.99),
        "fp16 adaptive": (0.8, 0.9),
        "fp16 static 2^0": (0.1,),
        "fp16 static 2^8": (0.79,),
    }
    rows = claims(results(tmp_path, scores)).splitlines()
    assert "| fp16 torch | 0 of 1 | 0 of 1 | 1 of 1 |  |  |  |  |" in rows
    assert "| fp16 layerwise | 1 of 1 | 0 of 1 | 0 of 1 | 1 of 1 | 0 of 1 |  |  |" in rows
    assert "| fp16 adaptive | 1 of 1 |  |  |  |  |  |  |" in rows, "two seeds tell nothing apart"
    assert f"| {BEST} | 1 of 1 | | | | | | |" in rows


def test_what_float32_was_not_trained_at_is_left_out(tmp_path):
    path = tmp_path / "some.jsonl"
    lone = json.dumps({**json.loads(line("fp16 torch", 0, 0.9)), "value": 16})
    path.write_text("\n".join(["{}", line("fp32", 0, 0.5), lone]) + "\n")
    found = read(path, worst=0.0)
    assert set(found.cells) == {"fp32"}
    assert "fp16 torch" not in section(TASKS["units"], found)


def test_nothing_is_claimed_of_values_at_which_float32_learns_nothing(tmp_path):
    ((task, found),) = results(tmp_path, {"fp32": (0.9,), "fp16 torch": (0.0,)})
    truth = found.cells["fp32"]
    both = {8.0: truth[8], 16.0: replace(truth[8], scores=(0.05,))}
    assert [learned(task, both, value) for value in both] == [True, False]


def test_five_seeds_are_planned_where_three_leave_it_open(tmp_path):
    scores = {
        "fp32": (0.80, 0.80, 0.80),
        "bf16": (0.70, 0.82),
        "fp16 torch": (0.70, 0.76, 0.82),
        "fp16 guarded": (0.80, 0.79, 0.80),
        "fp16 layerwise": (0.50, 0.49, 0.50),
    }
    ((task, found),) = results(tmp_path, scores)
    plan = [(value, strategy.label, seed) for value, strategy, seed in close(task, found)]
    assert plan == [(8, label, seed) for seed in (3, 4) for label in ("fp32", "fp16 torch")]


def test_a_section_shows_every_statistic(tmp_path):
    path = tmp_path / "some.jsonl"
    losing = Result(8, "fp16 layerwise", 1, 0.7, 1.0, 5, 0.0, 3, 4.0, 2.5, (4, 3, 2, 1), 0.25, 0.5)
    lines = [
        *(line("fp32", seed, 0.5, (4, 3, 2, 1)) for seed in (0, 1)),
        json.dumps(replace(losing, seed=0, score=0.5).to_json()),
        json.dumps(losing.to_json()),
    ]
    path.write_text("\n".join(["{}", *lines]) + "\n")
    shown = section(TASKS["units"], read(path, worst=0.0))
    assert "2 seeds" in shown
    assert "| fp16 layerwise | 0.600 (+0.100 ± 1.271) | 4.0 | 2.5 |" in shown
    assert "| | steps to target | skipped | lost, weights | lost, inputs | scales |" in shown
    assert "| fp16 layerwise | 75 % | 5 | 25 % | 50 % | 3 |" in shown


@pytest.mark.parametrize("chance", [0.0, -7.0])
def test_near_is_measured_by_what_float32_learned_beyond_chance(chance):
    truth = chance + 1
    assert is_near(truth - 0.049, truth, chance)
    assert not is_near(truth - 0.051, truth, chance)


def weights_after(steps: int, layerwise: object) -> list[torch.Tensor]:
    """Of the task `energies`, whose loss holds a backward pass, in float32 at a scale of 2^8."""
    torch.manual_seed(0)
    training = TASKS["energies"].begin(12, 0)
    scaler = gradscale.GradScaler("cpu", policy=Static(2.0**8), layerwise=layerwise)
    for step in range(steps):
        training.optimizer.zero_grad()
        scaler.scale(training.loss(step)).backward()
        scaler.step(training.optimizer)
        scaler.update()
    return [parameter.detach() for parameter in training.model.parameters()]


def test_any_plan_leaves_the_gradient_of_a_gradient_as_it_is_bit_for_bit():
    plans: list[dict[int, int]] = []

    def scattered(graph: BackwardGraph, measurements: object) -> dict[int, int]:
        plans.append({n: 7 * n % 13 - 6 for n in range(len(graph)) if n not in graph.fixed})
        return plans[-1]

    for one, other in zip(weights_after(4, scattered), weights_after(4, None), strict=True):
        assert torch.equal(one, other)
    assert len(set(plans[-1].values())) == 13
