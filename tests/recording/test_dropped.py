"""Micro-batches that were left out: what the recording, the doctor, a replay and the page say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import gradscale
from gradscale.doctor import examine
from gradscale.gradients.accumulate import MicroBatches
from gradscale.policies import Static
from gradscale.recording import Recorder, Recording, read
from gradscale.replay import policy_from, replay
from gradscale.report.payload import payload_of
from gradscale.report.run import Run
from gradscale.report.sentences import sentences_of
from gradscale.report.summary import summary_of

TOO_LARGE, NAN = 1e38, math.nan
BATCHES = 3
ALL = tuple(range(BATCHES))
BUILDERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}


def recorded(
    folder: Path, bad: dict[tuple[int, int], float], name: str = "sgd", **arguments: Any
) -> tuple[Recording, list[gradscale.outcomes.outcome.StepOutcome]]:
    """Six steps of three micro-batches; the loss of some is multiplied by something bad."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    optimizer = BUILDERS[name](model.parameters())
    scaler = gradscale.GradScaler("cpu", init_scale=2.0**10, **arguments)
    outcomes = []
    with (
        gradscale.watch(model, scaler, every=1) as watching,
        Recorder(folder, scaler, watching, amax=True) as recorder,
    ):
        for step in range(6):
            for batch in range(BATCHES):
                loss = model(torch.randn(16, 4)).square().mean() * bad.get((step, batch), 1.0)
                recorder.note_loss(loss)
                scaler.scale(loss).backward()
                scaler.accumulate_(optimizer, drop_overflow=True)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            outcomes.append(scaler.last_step)
    return read(folder), outcomes


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("sync_free", [False, True])
def test_what_was_dropped_is_recorded_with_its_step(
    tmp_path: Path, name: str, sync_free: bool
) -> None:
    bad = {(2, 1): TOO_LARGE} | {(4, batch): TOO_LARGE for batch in ALL}
    recording, outcomes = recorded(tmp_path, bad, name, sync_free=sync_free)
    steps = recording.steps
    assert [step.dropped for step in steps] == [0, 0, 1, 0, 3, 0]
    assert [step.micro_batches for step in steps] == [0, 0, 3, 0, 3, 0]
    assert [outcome.dropped for outcome in outcomes] == [0, 0, 1, 0, 3, 0]
    # One line a step, each of them measured, however many micro-batches it has.
    assert [step.step for step in recording.measured] == list(range(6))
    assert [step.skipped for step in steps] == [False] * 4 + [True, False]
    assert [step.overflow for step in steps] == [False, False, True, False, True, False]
    assert [step.scale for step in steps] == [2.0**e for e in (10, 10, 10, 9, 9, 8)]


@pytest.mark.parametrize("value", [TOO_LARGE, NAN])
def test_a_step_of_which_nothing_is_left_says_why_and_who(tmp_path: Path, value: float) -> None:
    recording, outcomes = recorded(tmp_path, {(1, batch): value for batch in ALL})
    step, (outcome,) = recording.steps[1], outcomes[1]
    reason = "overflow" if value == TOO_LARGE else "nonfinite_loss"
    assert step.skipped and step.reason == reason and step.overflow == (reason == "overflow")
    assert step.culprits == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert f"{reason}, scale=1024, all 3 micro-batches dropped, 0.weight: 32 of 32" in str(outcome)


def test_an_empty_step_knows_its_largest_gradient_as_any_skipped_step_does(tmp_path: Path) -> None:
    bad, good = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = torch.optim.SGD([bad, good], lr=0.1)
    scaler = gradscale.GradScaler("cpu", init_scale=8.0)
    with Recorder(tmp_path, scaler, amax=True):
        for _ in range(2):
            scaler.scale(torch.zeros(()))
            bad.grad, good.grad = torch.tensor([math.inf]), torch.tensor([4.0])
            scaler.accumulate_(optimizer, drop_overflow=True)
        scaler.step(optimizer)
        scaler.update()
    (step,) = read(tmp_path).steps
    assert step.amax == 0.5 and step.culprits == ("group 0, parameter 0",)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("where", ["_wanted_on_host", "_wanted_on_device"])
def test_the_first_that_is_kept_takes_the_place_of_what_was_dropped_before(
    first: bool, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MicroBatches, "_wanted", getattr(MicroBatches, where))
    one, two = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = torch.optim.SGD([one, two], lr=1.0)
    scaler = gradscale.GradScaler("cpu", init_scale=8.0)
    for dropped in (first, not first):
        scaler.scale(torch.zeros(()))
        one.grad = torch.tensor([math.inf if dropped else 16.0])
        two.grad = torch.tensor([8.0]) if dropped else None
        scaler.accumulate_(optimizer, drop_overflow=True)
    scaler.step(optimizer)
    scaler.update()
    assert not scaler.last_step.skipped and scaler.last_step.dropped == 1
    assert one.item() == -1.0 and two.item() == 1.0


@pytest.mark.parametrize("value", [TOO_LARGE, NAN])
def test_the_doctor_does_not_take_a_dropped_loss_for_a_step_that_was_taken(
    tmp_path: Path, value: float
) -> None:
    recorded(tmp_path, {(3, 1): value})
    diagnosis = examine(tmp_path)
    assert diagnosis.healthy
    bad = "; the loss was not finite in 1 of these" if value is NAN else ""
    assert f"1 micro-batch was left out, in 1 step{bad}." in str(diagnosis)


def test_a_bad_loss_beside_nothing_dropped_is_still_one() -> None:
    steps = [
        gradscale.recording.Step(0, 8.0, loss=NAN, dropped=1, micro_batches=4),
        gradscale.recording.Step(1, 8.0, loss=NAN),
    ]
    course = gradscale.doctor.run_course.course_of(steps)
    assert course is not None and course.first_bad_loss == 1 and course.bad_data == 1


def test_a_run_that_drops_again_and_again_is_warned_of(tmp_path: Path) -> None:
    step = {"kind": "step", "scale": 8.0, "skipped": False, "reason": None, "loss": 1.0}
    lines = [{"kind": "run", "version": 1, "policy": {"name": "Static", "config": {}}}]
    dropped = {"dropped": 1, "micro_batches": 4}
    lines += [step | {"step": i} | (dropped if i % 2 else {}) for i in range(100)]
    path = tmp_path / "recording.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (found,) = (finding for finding in examine(path).findings if finding.code == "dropped")
    assert found.what == "50 % of the steps lack some of their micro-batches."
    assert "left out 50 in 50 steps" in found.evidence and "clean the data" in found.way_out


@pytest.mark.parametrize("policy", [None, "dynamic(init_scale=2^10)"])
def test_the_recorded_policy_is_replayed_to_the_bit(tmp_path: Path, policy: str | None) -> None:
    bad = {(1, 0): TOO_LARGE, (3, 2): NAN} | {(4, batch): TOO_LARGE for batch in ALL}
    recording, _ = recorded(tmp_path, bad)
    found = replay(recording, None if policy is None else policy_from(policy))
    assert found.exact and found.skipped == 1
    assert [step.scale for step in found.steps] == [step.scale for step in recording.steps]


def test_at_a_lower_scale_the_micro_batch_would_have_been_kept(tmp_path: Path) -> None:
    recording, _ = recorded(tmp_path, {(1, 0): TOO_LARGE})
    low, high = (replay(recording, Static(2.0**exponent)) for exponent in (4, 12))
    assert not low.skipped and not high.skipped
    assert not low.steps[1].overflow and not low.steps[1].certain
    assert high.steps[1].overflow and not high.steps[1].certain


def test_the_report_counts_them_and_lists_their_steps(tmp_path: Path) -> None:
    recording, _ = recorded(tmp_path, {(1, 0): TOO_LARGE} | {(4, b): NAN for b in ALL})
    run = Run.of(recording)
    assert summary_of(run)["dropped"] == {"micro_batches": 4, "steps": 2}
    assert "4 micro-batches dropped in 2 steps" in sentences_of(run)[0]
    details = payload_of([run], "")[0]["runs"][0]["skips"]["details"]
    assert [(it["step"], it["reason"], it["dropped"]) for it in details] == [
        (1, None, [1, 3]),
        (4, "nonfinite_loss", [3, 3]),
    ]


def test_metrics_say_how_many_were_dropped_where_some_may_be() -> None:
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler = gradscale.GradScaler("cpu", init_scale=8.0)
    seen: list[gradscale.metrics.Metrics] = []
    scaler.log_to(seen.append)
    for dropping, value in ((False, 1.0), (True, 1.0), (True, math.inf)):
        for each in (1.0, value):
            scaler.scale(torch.zeros(()))
            parameter.grad = torch.full((1,), each)
            scaler.accumulate_(optimizer, drop_overflow=dropping)
        scaler.step(optimizer)
        scaler.update()
    assert [it.dropped for it in seen] == [None, 0, 1]
    assert "dropped" not in seen[0].scalars() and seen[2].scalars()["dropped"] == 1.0
