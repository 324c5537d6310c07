"""Options from a TOML file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from invoking import call


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text('steps = 4\nbatch-size = 8\nthreads = 1\ndevice = "cpu"\nformat = "fp32"\n')
    return path


def test_the_file_sets_options_and_the_command_line_overrides_it(config, tmp_path):
    arguments = ("--config", config, "--steps", 2, "--json", "--out", tmp_path / "run")
    settings = json.loads(call("train", "digits", *arguments).stdout)["settings"]
    assert (settings["steps"], settings["batch_size"], settings["format"]) == (2, 8, "fp32")


def test_lists_stand_for_comma_separated_values(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(
        'policy = ["none", "dynamic"]\nloss_divisor = [1, 8]\nseeds = 1\nsteps = 1\n'
        'batch_size = 4\nthreads = 1\ndevice = "cpu"\n'
    )
    result = call("compare", "--config", path, "--json", "--out", tmp_path / "run")
    comparison = json.loads(result.stdout)["comparison"]
    assert comparison["policies"] == ["none", "dynamic"]
    assert comparison["loss_divisors"] == [1.0, 8.0]


def test_keys_are_the_options_as_they_are_typed(config, tmp_path):
    with config.open("a") as file:
        file.write("json = true\nno-color = true\nlr = '2^-8'\n")
    result = call("train", "digits", "--config", config, "--out", tmp_path / "run")
    assert json.loads(result.stdout)["settings"]["lr"] == 2.0**-8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step = 3", "`step` in"),
        ("step = 3", "Did you mean `steps`?"),
        ("resume = 'x'", "`resume` in"),
        ("precision = 'fp32'", "is called `format` now"),
        ("steps = ", "is not valid TOML"),
        ("steps = 'many'", "`steps = 'many'` in"),
        ("steps = 'many'", "must be a whole number"),
        ("steps = 2.5", "`steps = 2.5` in"),
        ("steps = true", "must be a whole number"),
        ("steps = [1, 2]", "must be a whole number"),
        ("as-json = true", "`as-json` in"),
        ("json = 1", "must be true or false"),
        ("lr = true", "must be a number"),
        ("lr = [[1]]", "must be a number"),
        ("device = 0", "must be text in quotes"),
        ("[steps]\nx = 1", "must be a whole number"),
    ],
)
def test_a_wrong_file_is_exit_code_2_with_the_reason(text, message, tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    result = call("train", "digits", "--config", path)
    assert result.exit_code == 2
    assert message in result.stderr
