"""Runs: recordings, folders of `gradscale train`, and the step at which they fell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import gradscale
from gradscale.doctor import examine
from gradscale.doctor.run_course import course_of
from gradscale.recording import Recorder, Step, read


def steps_file(folder: Path, steps: list[dict[str, Any]], **settings: Any) -> Path:
    lines = [{"step": i, "loss": 1.0, "scale": 1024.0, "skipped": False, "reason": None, **line}
             for i, line in enumerate(steps)]  # fmt: skip
    (folder / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "settings.json").write_text(json.dumps({"policy": "dynamic", **settings}))
    return folder


OVERFLOW = {"skipped": True, "reason": "overflow"}
BAD_WEIGHTS = {"skipped": True, "reason": "nonfinite_parameter", "loss": "nan"}


def test_a_collapsed_run_names_the_step_at_which_it_began(tmp_path):
    falling = [OVERFLOW | {"scale": 2.0 ** (10 - i)} for i in range(30)]
    diagnosis = examine(steps_file(tmp_path, [{}] * 50 + falling))
    problem = diagnosis.problems[0]
    assert (problem.severity, problem.code) == ("error", "collapse")
    assert problem.what == "The run collapsed at step 50."
    assert "30 steps in a row" in problem.evidence
    assert "the scale went from 2^10 (1024) to 2^-19" in problem.evidence
    assert problem.way_out.startswith("Go back to a checkpoint from before step 50.")


def test_a_run_that_lost_its_weights_is_told_so(tmp_path):
    diagnosis = examine(steps_file(tmp_path, [{}] * 9 + [BAD_WEIGHTS] * 7))
    assert [f.code for f in diagnosis.problems] == ["collapse", "nonfinite-parameter"]
    assert "the weights are infinite or NaN" in diagnosis.problems[0].way_out


def test_a_run_that_only_looks_for_its_first_scale_has_not_collapsed(tmp_path):
    falling = [OVERFLOW | {"scale": 2.0 ** (32 - i)} for i in range(16)]
    diagnosis = examine(steps_file(tmp_path, falling))
    assert [f.code for f in diagnosis.problems] == ["no-step-yet"]
    assert "from 2^32 (4294967296) down to 2^17 (131072)" in diagnosis.problems[0].evidence
    assert examine(steps_file(tmp_path, falling + [{"scale": 2.0**16}] * 40)).healthy


def test_skips_in_the_middle_are_found_and_the_start_is_forgiven(tmp_path):
    bad = {"skipped": True, "reason": "nonfinite_loss"}
    diagnosis = examine(steps_file(tmp_path, [{}] * 20 + [bad] * 6 + [{}] * 20))
    assert [f.code for f in diagnosis.problems] == ["skipped-in-a-row", "nonfinite-loss"]
    assert diagnosis.problems[0].what == "6 steps in a row were skipped, from step 20."


def test_a_loss_that_is_not_finite_in_a_step_that_was_taken_is_an_error(tmp_path):
    diagnosis = examine(steps_file(tmp_path, [{}] * 3 + [{"loss": "nan"}] * 4, policy="none"))
    (problem,) = diagnosis.problems
    assert problem.what == "The loss is not finite from step 3 on."


def test_a_run_without_a_scaler_is_said_to_have_none(tmp_path):
    diagnosis = examine(steps_file(tmp_path, [{"scale": 1.0}] * 9, policy="none"))
    assert diagnosis.healthy and diagnosis.patients[0].system == "none"
    assert "The run scales no loss." in str(diagnosis)


def record(path: Path, steps: int, bad: range, end: bool = True, **options: Any) -> Path:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    scaler = gradscale.GradScaler("cpu", **options)
    recorder = Recorder(path, scaler)
    for step in range(steps):
        optimizer.zero_grad()
        loss = model(torch.ones(2, 4)).pow(2).mean() * (float("inf") if step in bad else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    recorder.close()
    if not end:
        file = path / "recording.jsonl"
        file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]) + b'{"kind')
    return path


def test_a_recording_is_examined_with_its_policy(tmp_path):
    policy = gradscale.Dynamic(init_scale=2.0**10, growth_interval=5)
    diagnosis = examine(record(tmp_path / "run", 22, range(9, 12), policy=policy))
    (patient,) = diagnosis.patients
    assert (patient.system, patient.policy, patient.interval) == ("gradscale", "Dynamic", 5)
    assert patient.skips.skipped == 3 and patient.skips.reasons == {"nonfinite_loss": 3}
    assert patient.course.growths == 3
    assert [f.code for f in diagnosis.problems] == ["nonfinite-loss"]


def test_a_killed_recording_is_examined_as_far_as_it_got(tmp_path):
    diagnosis = examine(record(tmp_path / "run", 12, range(0), end=False))
    note = next(f for f in diagnosis.findings if f.code == "not-closed")
    assert "Its last line is torn and was left out" in note.evidence


def test_the_lost_share_of_a_recording_is_judged(tmp_path):
    file = record(tmp_path / "run", 6, range(0)) / "recording.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    names = ("id", "flushed", "nonzero", "zero", "nonfinite", "amax", "exponent", "lo", "hi")
    seen = {"lost": 0.25, "method": "extrapolated", **{name: [] for name in names}}
    next(line for line in lines if line.get("step") == 4)["seen"] = seen
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    problem = examine(file).problems[0]
    assert problem.what == "25 % of the gradients are lost to underflow."
    assert "Measured at step 4 (extrapolated)" in problem.evidence


def test_a_run_that_only_falls_is_found(tmp_path):
    lines = [
        {"scale": 2.0 ** (16 - i // 12)} | (OVERFLOW if i % 12 == 11 else {}) for i in range(99)
    ]
    file = record(tmp_path / "run", 1, range(0), growth_interval=20) / "recording.jsonl"
    head = file.read_text().splitlines()[0]
    base = {"kind": "step", "skipped": False, "reason": None}
    steps = [json.dumps({**base, "step": i, **line}) for i, line in enumerate(lines)]
    file.write_text("\n".join([head, *steps]) + "\n")
    codes = [f.code for f in examine(file).problems]
    assert codes == ["never-grew"]


@pytest.mark.parametrize("scaling", ["dynamic", "torch", "none"])
def test_a_folder_of_gradscale_train_is_examined(scaling, tmp_path):
    pytest.importorskip("click")
    from click.testing import CliRunner

    from gradscale.cli.group import gradscale as program

    tiny = ["--device", "cpu", "--steps", "3", "--batch-size", "8", "--threads", "1"]
    arguments = ["train", "digits", *tiny, "--policy", scaling, "--out", str(tmp_path / "run")]
    assert CliRunner().invoke(program, arguments).exit_code == 0
    diagnosis = examine(tmp_path / "run")
    (patient,) = diagnosis.patients
    named = {"dynamic": "gradscale", "torch": "torch", "none": "none"}[scaling]
    assert patient.system == named and patient.course.steps == 3
    assert examine(tmp_path / "run" / "checkpoint.pt") if scaling != "none" else True


def test_every_run_of_a_comparison_is_examined_under_its_name(tmp_path):
    (tmp_path / "comparison.json").write_text("{}")
    for name in ("dynamic", "static"):
        folder = tmp_path / "divisor-1" / name / "seed-0"
        folder.mkdir(parents=True)
        steps_file(folder, [{}] * 3 + [OVERFLOW] * 6 if name == "static" else [{}] * 9)
    diagnosis = examine(tmp_path)
    assert len(diagnosis.patients) == 2
    assert diagnosis.problems[0].where == "divisor-1/static/seed-0"


def test_a_checkpoint_that_is_damaged_in_a_run_is_named(tmp_path):
    steps_file(tmp_path, [{}] * 3)
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04junk")
    with pytest.raises(ValueError, match=r"checkpoint.pt` cannot be read: it is a damaged archive"):
        examine(tmp_path)


def test_a_course_is_the_slow_way_round(tmp_path):
    lines = [Step(i, 8.0 if i < 4 else 4.0, i in (3, 5, 6), "overflow" if i == 3 else None)
             for i in range(9)]  # fmt: skip
    course = course_of(lines)
    assert course is not None and course_of([]) is None
    assert (course.skipped, course.reasons, course.unexplained) == (3, {"overflow": 1}, 2)
    assert (course.longest.begin, course.longest.length, course.final) == (5, 2, None)
    assert (course.growths, course.backoffs, course.scales) == (0, 1, (8.0, 4.0, 8.0, 4.0))


def test_the_course_of_a_long_recording_is_that_of_its_steps(tmp_path):
    folder = record(tmp_path / "run", 30, range(4, 9))
    assert course_of(read(folder).steps).skipped == 5
