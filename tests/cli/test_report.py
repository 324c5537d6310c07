"""`gradscale report`: what it writes, prints and refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from invoking import call
from report_recordings import MadeUp


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return MadeUp(steps=100).write(tmp_path / "mine" / "recording.jsonl").parent


def payload(report: Path) -> dict:
    text = report.read_text()
    found = re.search(r'id="payload">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_a_report_lies_beside_its_run(run):
    result = call("report", run)
    assert result.exit_code == 0 and result.stderr == ""
    assert result.stdout.splitlines()[0] == (
        "100 steps, 1 skipped (1 overflow), scale 2^16 to 2^17, 0.9 % lost (counted)."
    )
    assert f"Written to {run / 'report.html'}" in result.stdout
    assert payload(run / "report.html")["runs"][0]["name"] == "mine"


def test_a_recording_is_taken_as_well_as_its_folder(run):
    assert call("report", run / "recording.jsonl").exit_code == 0
    assert payload(run / "report.html")["runs"][0]["name"] == "mine"


def test_several_runs_are_side_by_side_under_one_title(run, tmp_path):
    other = MadeUp(steps=30, seed=1).write(tmp_path / "other" / "recording.jsonl").parent
    out = tmp_path / "both.html"
    result = call("report", run, other, "--out", out, "--title", "Two & two")
    assert [line.partition(":")[0] for line in result.stdout.splitlines()[:2]] == ["mine", "other"]
    assert [one["name"] for one in payload(out)["runs"]] == ["mine", "other"]
    assert "<title>Two &amp; two</title>" in out.read_text()


def test_what_gradscale_train_and_compare_wrote_is_shown_as_far_as_it_goes(tmp_path):
    tiny = ("--device", "cpu", "--steps", "3", "--batch-size", "8", "--threads", "1")
    call("train", "digits", *tiny, "--init-scale", "2^40", "--out", tmp_path / "train")
    result = call("report", tmp_path / "train")
    assert "3 steps, 3 skipped (3 overflow), scale 2^38 to 2^40." in result.stdout
    assert "No gradients were measured" in result.stdout and "gradscale.Recorder" in result.stdout
    call("compare", "digits", *tiny, "--seeds", "1", "--policy", "dynamic", "--loss-divisor", "1",
         "--out", tmp_path / "compare")  # fmt: skip
    assert call("report", tmp_path / "compare").exit_code == 0
    names = [one["name"] for one in payload(tmp_path / "compare" / "report.html")["runs"]]
    assert names == ["divisor-1/fp16-dynamic/seed-0", "divisor-1/fp32-none/seed-0"]


def test_a_damaged_run_is_named_and_the_others_are_shown(run, tmp_path):
    MadeUp(steps=30, seed=1).write(tmp_path / "other" / "recording.jsonl")
    broken = tmp_path / "broken" / "recording.jsonl"
    broken.parent.mkdir()
    broken.write_text('{"kind": "run", "version": 1}\nnonsense\n{}\n')
    result = call("report", tmp_path)
    assert result.exit_code == 0
    assert f"Left out: `{broken}`, line 2, is no line of a recording" in result.stderr
    names = [one["name"] for one in payload(tmp_path / "report.html")["runs"]]
    assert names == ["mine", "other"]
    printed = json.loads(call("report", tmp_path, "--json").stdout)
    assert len(printed["runs"]) == 2 and str(broken) in printed["left_out"][0]


def test_json_is_the_summary_of_every_run(run):
    printed = json.loads(call("report", run, "--json").stdout)
    assert printed["report"] == str(run / "report.html")
    it = printed["runs"][0]
    assert (it["steps"], it["skipped"], it["reasons"]) == (100, 1, {"overflow": 1})
    assert it["lost"]["method"] == "counted" and it["best"]["recorded"]["log2_scale"] == 16


def test_figures_are_saved_in_the_formats_that_are_asked_for(run, tmp_path):
    result = call("report", run, "--figures", tmp_path / "figures", "--figure-format", "pdf,svg")
    assert result.exit_code == 0
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    figures = ("heat", "histograms", "plan", "scale")
    assert names == sorted(f"{name}.{format}" for name in figures for format in ("pdf", "svg"))
    assert f"Figures in {tmp_path / 'figures'}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "which run? Pass a recording, or a folder with one."),
        (["nowhere"], "`nowhere` does not exist."),
        (["{tmp}"], "holds no recording"),
        (["{tmp}/torn.jsonl"], "is no line of a recording"),
        (["{run}", "--figure-format", "gif"], "'gif' is not one of png, svg, pdf."),
        (["{run}", "--out", "{run}/recording.jsonl/report.html"], "recording.jsonl"),
    ],
)
def test_bad_input_ends_with_a_message_and_no_traceback(tmp_path, arguments, words):
    run = MadeUp(steps=2).write(tmp_path / "runs" / "mine" / "recording.jsonl").parent
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "torn.jsonl").write_text('{"kind": "run", "version": 1}\nnonsense\n')
    places = {"{tmp}": str(tmp_path / "empty"), "{run}": str(run)}
    given = [re.sub(r"\{\w+\}", lambda m: places[m[0]], text) for text in arguments]
    result = call("report", *given)
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert words in " ".join(result.output.split())


def test_help_has_examples():
    text = call("report", "--help").stdout
    assert "Examples:" in text and "gradscale report runs/mine" in text


def test_piped_output_has_no_escape_sequences_and_nothing_on_the_side(run):
    command = [sys.executable, "-m", "gradscale.cli.main", "report", str(run)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert found.stderr == "" and "\x1b" not in found.stdout
