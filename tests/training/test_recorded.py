"""Runs of `gradscale train` and `compare` that record themselves: same bits, resumed with them."""

import json

import pytest
import torch
from click.testing import CliRunner

from gradscale.cli.group import gradscale
from gradscale.recording import read
from gradscale.training import Interrupted, RunFolder, load_data, run, settings_for

TINY = {"device": "cpu", "steps": 12, "batch_size": 8, "threads": 1}


def train(path, *, record=True, stop_after=None, on_step=lambda record: None, **settings):
    chosen = settings_for("digits", **TINY, **settings)
    steps = iter(range(1, 100))
    return run(
        chosen,
        load_data(chosen),
        RunFolder(path),
        on_step=on_step,
        stop=lambda: next(steps) == stop_after,
        save_every=3,
        record=record,
    )


SCALINGS = ["dynamic", "torch", "lognormal", "layerwise", "none"]


@pytest.mark.slow
@pytest.mark.parametrize("scaling", SCALINGS)
def test_recording_changes_nothing_and_agrees_with_the_runs_own_steps(scaling, tmp_path):
    plain, recorded = tmp_path / "plain", tmp_path / "recorded"
    options = {"policy": scaling, "init_scale": 2.0**24}
    if scaling == "none":
        options = {"policy": scaling}
    train(plain, record=False, **options)
    train(recorded, **options)
    assert (plain / "steps.jsonl").read_text() == (recorded / "steps.jsonl").read_text()
    assert not (plain / "recording.jsonl").exists()
    theirs, mine = read(plain), read(recorded / "recording.jsonl")
    for step, line in zip(theirs.steps, mine.steps, strict=True):
        assert (step.step, step.scale, step.skipped) == (line.step, line.scale, line.skipped)
        assert line.loss == pytest.approx(step.loss, rel=1e-8) and line.reason == step.reason
    assert any(step.seen is not None for step in mine.steps) and mine.structures
    assert mine.header.note["policy"] == scaling


@pytest.mark.slow
@pytest.mark.parametrize("scaling", ["dynamic", "quantile"])
def test_a_resumed_run_records_what_an_uninterrupted_one_does(scaling, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = {"policy": scaling, "init_scale": 2.0**30}
    train(whole, **options)
    with pytest.raises(Interrupted):
        train(broken, stop_after=7, **options)
    assert read(broken / "recording.jsonl").end["stopped"] == "Interrupted"
    train(broken, record=False, **options)  # it goes on because it had begun
    first, second = read(whole / "recording.jsonl"), read(broken / "recording.jsonl")
    for a, b in zip(first.steps, second.steps, strict=True):
        names = ("step", "scale", "skipped", "reason", "loss", "amax", "overflow", "culprits")
        assert [getattr(a, name) for name in names] == [getattr(b, name) for name in names]
    assert second.end == {"kind": "end", "steps": 12}
    assert behind_the_header(broken) == behind_the_header(whole)


def behind_the_header(path):
    """All lines but the first, which tells when the run began."""
    return (path / "recording.jsonl").read_bytes().split(b"\n", 1)[1]


class Killed(BaseException):
    """What a killed run is stopped by here: nobody catches it, and nothing is saved."""


@pytest.mark.slow
@pytest.mark.parametrize("scaling", ["layerwise", "torch"])
@pytest.mark.parametrize("at", [4, 8])
def test_a_run_killed_between_checkpoints_records_what_an_unkilled_one_does(
    at, scaling, tmp_path, monkeypatch
):
    """To the byte: what is seen, its octaves, and the plan, each where it would have been."""
    monkeypatch.setattr("gradscale.training.recorded.MEASUREMENTS", 1)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = {"policy": scaling, "init_scale": 2.0**26}
    train(whole, **options)

    def kill(record):
        if record.step == at:
            raise Killed

    with pytest.raises(Killed):
        train(broken, on_step=kill, **options)
    train(broken, **options)
    assert behind_the_header(broken) == behind_the_header(whole)
    steps = read(broken / "recording.jsonl").steps
    assert [step.step for step in steps if step.seen] == [0, 1, 2, 4, 8]
    # The step at which it was killed is taken again: no checkpoint holds it.
    assert any(step.octaves for step in steps if step.step >= at)
    assert sum(step.plan is not None for step in steps) >= (scaling == "layerwise")


def test_the_commands_record(tmp_path):
    torch.manual_seed(0)
    tiny = ["--device", "cpu", "--steps", "2", "--batch-size", "4", "--threads", "1", "--record"]
    for command in (["train", "digits"], ["compare", "digits", "--policy", "dynamic"]):
        out = tmp_path / command[0]
        extra = [] if command[0] == "train" else ["--seeds", "1", "--loss-divisor", "1"]
        result = CliRunner().invoke(gradscale, [*command, *tiny, *extra, "--out", str(out)])
        assert result.exit_code == 0, result.output
        found = sorted(out.rglob("recording.jsonl"))
        assert len(found) == (1 if command[0] == "train" else 2)
        for path in found:
            recording = read(path)
            assert len(recording.steps) == 2 and recording.header.note["recipe"] == "digits"
            json.dumps(recording.header.note)
