"""`gradscale replay`: its table, its JSON, its words, and what it answers to bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gradscale.recording import read
from invoking import call
from recordings import write_recording

TINY = ("--device", "cpu", "--threads", "1")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("train") / "run"
    options = ("--steps", "12", "--batch-size", "8", "--init-scale", "2^30", "--record")
    assert call("train", "digits", *TINY, *options, "--out", path).exit_code == 0
    return path


def test_without_a_policy_the_recorded_one_is_replayed_exactly(recorded):
    result = call("replay", recorded)
    assert result.exit_code == 0 and result.stderr == ""
    lines = [line for line in result.stdout.splitlines() if line.strip()]
    assert lines[2].split()[2:] == [*lines[3].split()[2:-3]]
    assert lines[3].endswith("all steps            never ") or "never" in lines[3]
    assert "Exact: every scale is the recorded one" in result.stdout


def test_several_policies_make_a_table(recorded):
    texts = ["lognormal", "two-sided", "dynamic(init_scale=2^16)", "deepspeed"]
    result = call("replay", recorded, *(part for text in texts for part in ("--policy", text)))
    assert result.exit_code == 0
    flat = "".join(result.stdout.split())
    for text in ("asrecorded", *(text.replace(" ", "") for text in texts)):
        assert text in flat or text[:10] in flat
    assert "Counterfactual: a step would have been skipped that was not" in result.stdout
    assert "which a watch measured on 12 of 12 steps" in result.stdout
    table = result.stdout.partition("Other scales")[0].partition("Counterfactual:")[0]
    assert max(map(len, table.splitlines())) <= 100


def test_json_has_every_answer_and_every_step_on_request(recorded):
    printed = json.loads(call("replay", recorded, "--policy", "dynamic", "--json").stdout)
    steps = read(recorded).steps
    assert printed["recorded"]["skipped"] == sum(step.skipped for step in steps) > 0
    (answer,) = printed["replays"]
    assert answer["name"] == "dynamic" and answer["policy"].startswith("Dynamic(")
    assert answer["scale"]["highest"] == 65536.0 and answer["counterfactual_from"] == 0
    assert "every_step" not in answer
    again = json.loads(call("replay", recorded, "--json", "--steps").stdout)
    every = again["replays"][0]["every_step"]
    assert [step["scale"] for step in every] == [step.scale for step in steps]
    assert {step["basis"] for step in every} == {"exact"}


@pytest.mark.slow
def test_a_prediction_is_near_the_real_run_of_that_policy(tmp_path):
    """Digits, recorded from 2^24 under `dynamic`; then really trained under `lognormal`."""
    options = ("--steps", "60", *TINY)
    recorded, real = tmp_path / "recorded", tmp_path / "real"
    call("train", "digits", *options, "--init-scale", "2^24", "--record", "--out", recorded)
    call("train", "digits", *options, "--policy", "lognormal", "--out", real)
    answer = call("replay", recorded, "--policy", "lognormal", "--json", "--steps").stdout
    (found,) = json.loads(answer)["replays"]
    truth = json.loads((real / "result.json").read_text())
    assert abs(found["skipped"] - truth["skipped"]) <= 1
    assert 0.5 <= found["scale"]["last"] / truth["final_scale"] <= 2
    scales = [step.scale for step in read(real).steps]
    ratios = [a["scale"] / b for a, b in zip(found["every_step"], scales, strict=True)]
    assert sorted(ratios)[len(ratios) // 2] in (0.5, 1.0, 2.0)
    assert found["lost_share"] < 1e-3


def test_a_step_file_of_train_says_what_it_lacks(tmp_path, recorded):
    (tmp_path / "steps.jsonl").write_text((recorded / "steps.jsonl").read_text())
    result = call("replay", tmp_path)
    assert result.exit_code == 2
    assert "does not say which policy recorded it. Name one" in result.output
    result = call("replay", tmp_path, "--policy", "lognormal")
    assert result.exit_code == 2 and "`LogNormal` needs `amax` at every step" in result.output
    assert call("replay", tmp_path, "--policy", "dynamic(init_scale=2^30)").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere",), "does not exist. Pass a recording"),
        (("RUN", "--policy", "dynamik"), "Did you mean dynamic?"),
        (("RUN", "--policy", "dynamic(growth_factor=0.5)"), "must be finite and above 1"),
        (("RUN", "--policy", "dynamic(growth_interval='a')"), "must be an int, not str"),
        (("RUN", "--steps"), "`--steps` goes with `--json`"),
        (("damaged.jsonl",), "line 1, is no line of a recording"),
    ],
)
def test_bad_input_ends_with_a_message_and_exit_code_2(arguments, words, recorded, tmp_path):
    (tmp_path / "damaged.jsonl").write_bytes(b"\x00\xff\n{}\n")
    places = {"RUN": recorded, "damaged.jsonl": tmp_path / "damaged.jsonl"}
    result = call("replay", *(places.get(argument, argument) for argument in arguments))
    assert result.exit_code == 2 and words in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_help_has_examples_and_the_names_of_all_policies():
    from gradscale.replay.policy_text import NAMES

    text = call("replay", "--help").stdout
    assert "Examples:" in text and "gradscale replay runs/mine" in text
    assert [name for name in NAMES if name not in text] == []


def test_piped_output_is_plain_and_standard_error_is_silent(tmp_path):
    path = write_recording(tmp_path / "recording.jsonl", steps=3000, rows=4)
    command = [sys.executable, "-m", "gradscale.cli.main", "replay", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and "\x1b" not in done.stdout and "as recorded" in done.stdout


@pytest.mark.parametrize("plain", [False, True])
def test_a_terminal_gets_color_unless_it_is_refused(plain, recorded, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    extra = ["--no-color"] if plain else []
    assert ("\x1b" in call("replay", recorded, *extra).stdout) is not plain
