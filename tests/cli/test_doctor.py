"""`gradscale doctor`: what it prints, its exit codes, and every way to get it wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import Result

from gradscale.doctor import examine
from invoking import call

TORCH = torch.amp.GradScaler("cpu").state_dict()


@pytest.fixture
def healthy(tmp_path: Path) -> Path:
    torch.save({"model": {}, "scaler": TORCH}, tmp_path / "healthy.pt")
    return tmp_path / "healthy.pt"


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    torch.save({"model": {}, "scaler": TORCH | {"scale": 0.0}}, tmp_path / "broken.pt")
    return tmp_path / "broken.pt"


def diagnose(*arguments: str | Path) -> Result:
    return call("doctor", *arguments)


def test_a_healthy_state_is_explained_and_ends_with_0(healthy):
    result = diagnose(healthy)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        'torch.amp.GradScaler at ["scaler"]\n'
        "  Loss scale 2^16 (65536).\n"
        "  0 of 2,000 finite steps towards the next growth.\n"
        "\nNo problem found.\n"
    )


def test_a_problem_ends_with_1_and_says_what_to_do(broken):
    result = diagnose(broken)
    assert result.exit_code == 1 and result.stderr == ""
    assert "error    The scale is 0." in result.stdout
    assert "Because: Overflow after overflow" in result.stdout
    assert "Do: Find out what was not finite" in result.stdout
    assert result.stdout.endswith("1 problem found.\n")


def test_the_command_prints_what_the_library_says(broken):
    assert diagnose(broken).stdout == f"{examine(broken)}\n"


def test_json_is_all_that_is_printed_when_it_is_asked_for(broken):
    result = diagnose(broken, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == json.loads(json.dumps(examine(broken).to_dict()))


def test_settings_of_the_code_are_compared(healthy):
    assert diagnose(healthy, "--against", "torch").exit_code == 0
    result = diagnose(healthy, "--against", "growth_interval=500")
    assert result.exit_code == 1
    assert "growth_interval=2000 saved, 500 in the code" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.pt"], "`none.pt` does not exist. Pass a checkpoint, a recording"),
        (["text.pt"], "`text.pt` is not a checkpoint that can be read: it is no pickle"),
        (["empty"], "`empty` holds no checkpoint and no run"),
        (["nothing.pt"], "`nothing.pt` holds no scaler's state. It has the keys 'model'"),
        (["healthy.pt", "--against", "caffe"], "`against='caffe'` must be a preset or settings"),
        ([], "Missing argument 'FILE'"),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(
    arguments, words, healthy, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"model": {}}, tmp_path / "nothing.pt")
    result = diagnose(*arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert words in " ".join(result.stderr.split()) and "Traceback" not in result.output


def test_a_real_process_is_quiet_and_plain_when_piped(broken):
    command = [sys.executable, "-m", "gradscale.cli.main", "doctor", str(broken)]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (1, "")
    assert "\x1b" not in run.stdout and "The scale is 0." in run.stdout


@pytest.mark.parametrize("no_color", [False, True])
def test_a_terminal_gets_colors_unless_they_are_refused(broken, no_color):
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "gradscale.cli.main", "doctor", str(broken)]
    environment = {**os.environ, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
    environment.pop("NO_COLOR", None)
    run = subprocess.Popen(
        [*command, *["--no-color"] * no_color],
        stdout=theirs, stderr=subprocess.DEVNULL, env=environment,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # the other end was closed
        pass
    os.close(ours)
    assert run.wait(timeout=240) == 1
    assert b"The scale is 0." in shown and (b"\x1b[1;31m" in shown) != no_color


def test_progress_is_told_file_by_file(tmp_path, healthy, broken):
    told: list[tuple[int, int, str]] = []
    examine(tmp_path, progress=lambda *now: told.append(now))
    assert told == [(0, 2, "broken.pt"), (1, 2, "healthy.pt")]


def test_help_has_examples_and_the_exit_codes():
    text = " ".join(diagnose("--help").stdout.split())
    assert "gradscale doctor checkpoint.pt --against growth_interval=500,min_scale=1" in text
    assert "The exit code is 0 if nothing is wrong, 1" in text
    assert "Nothing that FILE holds is run, not even pickled objects" in text
