"""What the commands do to folders and files: one writer, nothing overwritten, nothing torn."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from full_disk import file_size_limit
from gradscale.training import only_writer
from invoking import call
from report_recordings import MadeUp

TINY = (
    "digits --device cpu --steps 3 --batch-size 8 --threads 1 --format fp16 --loss-divisor 1"
).split()
COMPARED = ("--policy", "dynamic", "--seeds", "1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("train") / "run"
    assert call("train", *TINY, "--record", "--out", path).exit_code == 0
    return path


@pytest.fixture
def unfinished(trained: Path, tmp_path: Path) -> Path:
    path = shutil.copytree(trained, tmp_path / "unfinished")
    (path / "result.json").unlink()
    return path


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    return MadeUp(steps=30).write(tmp_path / "mine" / "recording.jsonl").parent


def said(result) -> str:
    return " ".join(result.stderr.split())


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_folder_that_another_process_writes_is_refused(command, unfinished, tmp_path):
    if command == "train":
        arguments = ("train", "--resume", unfinished)
        path = unfinished
    else:
        path = tmp_path / "compared"
        path.mkdir()
        arguments = ("compare", *TINY, *COMPARED, "--out", path)
    before = sorted(path.rglob("*"))
    with only_writer(path):
        result = call(*arguments)
    assert result.exit_code == 2
    assert f"`{path}` is being written by another run. Wait until it has ended" in said(result)
    assert sorted(path.rglob("*")) == before or command == "compare"
    assert call(*arguments).exit_code == 0 or command == "compare"


def test_a_full_disk_is_an_error_with_the_path_and_the_way_on(tmp_path):
    path = tmp_path / "run"
    with file_size_limit(20_000):  # room for settings and steps, not for a checkpoint
        result = call("train", *TINY, "--save-every", "1", "--out", path)
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert f"Error: `{path / 'checkpoint.pt'}` cannot be written: File too large." in said(result)
    assert f"Make room, and continue with `gradscale train --resume {path}`." in said(result)
    assert sorted(os.listdir(path)) == ["settings.json", "steps.jsonl"]
    resumed = call("train", "--resume", path)
    whole = call("train", *TINY, "--save-every", "1", "--out", tmp_path / "whole")
    assert resumed.exit_code == 0
    steps = [(one / "steps.jsonl").read_bytes() for one in (path, tmp_path / "whole")]
    assert steps[0] == steps[1]
    assert resumed.stdout.splitlines()[0] == whole.stdout.splitlines()[0]


@pytest.mark.parametrize("command", ["train", "compare"])
def test_where_nothing_could_be_written_no_folder_is_left(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    extra = COMPARED if command == "compare" else ()
    with file_size_limit(0):
        result = call(command, *TINY, *extra, "--out", "run")
    assert result.exit_code == 2 and "cannot be written: File too large." in said(result)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_no_half_report(recorded):
    with file_size_limit(20_000):
        result = call("report", recorded)
    assert result.exit_code == 2
    assert f"Error: `{recorded / 'report.html'}` cannot be written: File too large." in said(result)
    assert os.listdir(recorded) == ["recording.jsonl"]


def test_a_report_replaces_a_report_and_nothing_else(recorded, tmp_path):
    assert call("report", recorded).exit_code == 0
    assert call("report", recorded).exit_code == 0
    thesis = tmp_path / "thesis.tex"
    thesis.write_text("\\documentclass{book} % gradscale report runs/mine")
    result = call("report", recorded, "--out", thesis)
    assert result.exit_code == 2 and "gradscale did not make it" in said(result)
    assert "book" in thesis.read_text()
    assert call("report", recorded, "--out", thesis, "--force").exit_code == 0
    assert "<!doctype html>" in thesis.read_text()


def test_a_report_never_replaces_its_recording(recorded):
    before = (recorded / "recording.jsonl").read_bytes()
    for force in ((), ("--force",)):
        result = call("report", recorded, "--out", recorded / "recording.jsonl", *force)
        assert result.exit_code == 2
    assert "is the recording itself" in said(result)
    assert (recorded / "recording.jsonl").read_bytes() == before


@pytest.mark.timeout(60)
def test_a_report_goes_through_no_link_and_into_no_pipe(recorded, tmp_path):
    precious = tmp_path / "precious.html"
    precious.write_text("mine")
    report = recorded / "report.html"
    report.symlink_to(precious)
    result = call("report", recorded)
    assert result.exit_code == 2 and "is a symbolic link" in said(result)
    assert call("report", recorded, "--force").exit_code == 0
    assert precious.read_text() == "mine" and not report.is_symlink()
    report.unlink()
    os.mkfifo(report)
    result = call("report", recorded, "--force")
    assert result.exit_code == 2 and "it is a pipe" in said(result)


def test_figures_replace_figures_and_nothing_else(recorded, tmp_path):
    folder = tmp_path / "figures"
    command = ("report", recorded, "--figures", folder, "--figure-format", "png,svg,pdf")
    assert call(*command).exit_code == 0
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert call(*command).exit_code == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    (folder / "heat.png").write_bytes(b"\x89PNG of somebody else")
    result = call(*command)
    assert result.exit_code == 2 and "heat.png` is there already" in said(result)
    assert call(*command, "--force").exit_code == 0


@pytest.mark.timeout(100)
@pytest.mark.parametrize("name", ["settings.json", "checkpoint.pt", "steps.jsonl", "result.json"])
def test_a_pipe_in_a_run_folder_does_not_hang_its_resume(name, unfinished):
    (unfinished / name).unlink(missing_ok=True)
    os.mkfifo(unfinished / name)
    result = call("train", "--resume", unfinished)
    assert result.exit_code == 2 and name in said(result) and "a pipe" in said(result)


@pytest.mark.parametrize("name", ["steps.jsonl", "recording.jsonl", "checkpoint.pt"])
def test_a_resume_writes_through_no_link(name, unfinished, tmp_path):
    precious = tmp_path / "precious"
    shutil.copy(unfinished / name, precious)
    before = precious.read_bytes()
    (unfinished / name).unlink()
    (unfinished / name).symlink_to(precious)
    call("train", "--resume", unfinished)
    assert precious.read_bytes() == before


def test_a_comparison_does_not_train_outside_of_its_folder(tmp_path):
    path, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    assert call("compare", *TINY, *COMPARED, "--out", path).exit_code == 0
    shutil.move(path / "divisor-1", elsewhere)
    (path / "divisor-1").symlink_to(elsewhere)
    for result in elsewhere.rglob("result.json"):
        result.unlink()
    result = call("compare", "--resume", path)
    assert result.exit_code == 2 and f"a symbolic link leads out of `{path}`" in said(result)
    assert not list(elsewhere.rglob("result.json"))


READ_ONLY = """
    import os, sys
    from gradscale.cli.group import gradscale
    if os.getuid() == 0:
        os.setuid(65534)  # root may write anywhere
    for name in sys.argv[2:]:
        try:
            open(os.path.join(name, "new"), "w")
        except OSError:
            continue
        sys.exit("the folder can be written")
    gradscale([sys.argv[1], "--resume", sys.argv[2]])
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_finished_run_in_a_read_only_folder_is_read_again(command, tmp_path):
    extra = COMPARED if command == "compare" else ()
    path = tmp_path / "run"
    first = call(command, *TINY, *extra, "--out", path)
    for folder, _, files in os.walk(path):
        for name in files:
            os.chmod(Path(folder) / name, 0o444)
        os.chmod(folder, 0o555)
    # pytest's folders are its user's alone; with several workers there is one more.
    for parent in (tmp_path, *tmp_path.parents):
        if parent == tmp_path or parent.name.startswith(("pytest-", "popen-")):
            os.chmod(parent, 0o755)
    run = [sys.executable, "-c", textwrap.dedent(READ_ONLY), command, str(path)]
    again = subprocess.run(run, capture_output=True, text=True, timeout=240, check=False)
    os.chmod(path, 0o755)
    assert again.returncode == 0, again.stderr
    assert again.stdout.split() == first.stdout.split()


def test_inspect_in_a_used_folder_does_not_offer_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("used").mkdir()
    Path("used/notes.txt").write_text("mine")
    Path("a_step.py").write_text(
        "import torch\ndef step():\n    return torch.nn.Linear(2, 1), [1], len\n"
    )
    result = call("inspect", "a_step:step", "--out", "used")
    assert result.exit_code == 2 and "`used` is not empty. Choose another `--out`." in said(result)
    assert "--resume" not in result.output
