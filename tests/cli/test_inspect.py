"""`gradscale inspect`: the user's own function, its advice, and every way to get it wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import Result

from gradscale.recording import read
from invoking import call

MINE = """
import torch
from torch import nn

CALLS = []

def model_step():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 4))
    batches = [(torch.randn(16, 8), torch.randint(4, (16,))) for _ in range(4)]
    return model, batches, loss

def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])

def deep():
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(24)]
    return nn.Sequential(*layers, nn.Linear(8, 4)), model_step()[1], loss

def three():
    return 3

def crashes():
    return {}["missing"]

def vector():
    model, batches, _ = model_step()
    return model, batches, lambda model, batch: model(batch[0])

def wrong_shapes():
    model, batches, _ = model_step()
    def loss(model, batch):
        return model(batch[1].float()).sum()
    return model, batches, loss

def empty():
    model, _, loss = model_step()
    return model, iter([]), loss

def nan():
    model, batches, loss = model_step()
    return model, batches, lambda model, batch: loss(model, batch) * float("nan")

def frozen():
    return nn.ReLU(), [1], loss

def overflows():
    model, batches, loss = model_step()
    model[0].weight.data.mul_(1e6)
    return model, batches, loss

constant = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "needy.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("mine", "broken", "needy"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def inspect(*arguments: str) -> Result:
    try:
        return call("inspect", *arguments)
    finally:
        for name in ("mine", "broken", "needy"):
            sys.modules.pop(name, None)


def test_the_advice_is_a_table_and_plain_words_and_is_written(folder):
    result = inspect("mine:model_step", "--steps", "2", "--format", "fp16,bf16", "--out", "out")
    assert result.exit_code == 0 and result.stderr == ""
    head = next(line for line in result.stdout.splitlines() if "verdict" in line)
    columns = ("format", "scaling", "lost: none", "default", "one scale", "plan", "left at worst")
    for column in columns:
        assert column in head
    assert "fp16     safe" in result.stdout and "none needed" in result.stdout
    assert "Sequential on cpu, 2 steps of Adam: float16 is safe. Write:" in result.stdout
    assert "Written to out; see out/report.html" in result.stdout
    page = (folder / "out" / "report.html").read_text()
    assert "gradscale inspect mine:model_step" in page
    state = json.loads((folder / "out" / "advice.json").read_text())
    assert [v["format"] for v in state["verdicts"]] == ["fp16", "bf16"]
    assert (folder / "out" / "advice.txt").read_text() in result.stdout + "\n"


def test_every_format_leaves_a_recording_of_the_moments_it_was_tried_at(folder):
    inspect("mine:model_step", "--steps", "4", "--format", "fp16,bf16", "--out", "out")
    state = json.loads((folder / "out" / "advice.json").read_text())
    for verdict in state["verdicts"]:
        recording = read(folder / "out" / verdict["format"])
        steps = list(recording.steps)
        assert [step.step for step in steps] == [0, 2, 3]
        assert recording.header.format == verdict["format"]
        assert steps[-1].seen.method == "reference"
        names = [info.name for info in recording.rows]
        assert [name for name in names if "." not in name] == ["3", "2", "1", "0"], "from the loss"
        assert names.index("3") < names.index("3.weight") < names.index("2")
        assert [step.loss for step in steps] == pytest.approx(
            [state["losses"][step.step] for step in steps]
        )


def test_without_plotly_there_is_no_page_but_a_hint(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradscale.report", None)
    result = inspect("mine:model_step", "--steps", "1", "--format", "bf16", "--out", "out")
    assert result.exit_code == 0 and "report.html" not in os.listdir("out")
    assert 'pip install "gradscale[report]"' in result.stdout


def test_the_layers_that_lose_most_are_listed_with_what_they_need():
    result = inspect("mine:deep", "--steps", "1", "--format", "fp16")
    table = result.stdout.partition("lost in fp16 at 2^")[2]
    assert "needs" in table.splitlines()[0]
    first = table.splitlines()[2].split()
    assert first[1].replace(".", "").isdigit() and first[2] == "%"
    assert int(first[-1].removeprefix("2^")) > int(first[-2].removeprefix("2^"))


def test_the_table_fits_into_a_hundred_columns():
    result = inspect("mine:deep", "--steps", "1")
    table = result.stdout.partition("Sequential on cpu")[0]
    assert max(map(len, table.splitlines())) <= 100


def test_json_is_all_that_is_printed_when_it_is_asked_for():
    result = inspect("mine:model_step", "--steps", "1", "--format", "bf16", "--json")
    state = json.loads(result.stdout)
    assert state["code"] == 'with torch.autocast("cpu", torch.bfloat16):  # no scaler'
    assert state["verdicts"][0]["method"] == "reference"


@pytest.mark.parametrize(
    ("target", "format", "limit", "code"),
    [
        ("mine:model_step", "fp16", "0.01", 0),
        ("mine:overflows", "fp16", "0.5", 1),
        ("mine:overflows", "bf16", "0.5", 0),
        ("mine:nan", "fp16", "0.5", 1),
    ],
)
def test_the_exit_code_is_1_above_the_limit(target, format, limit, code):
    result = inspect(target, "--steps", "1", "--format", format, "--limit", limit)
    assert result.exit_code == code
    assert (f"--limit {float(limit):g}: " in result.stderr or "--limit: " in result.stderr) == bool(
        code
    )


def test_a_loss_that_is_nan_is_explained_and_is_no_failure_without_a_limit():
    result = inspect("mine:nan", "--steps", "1")
    assert result.exit_code == 0
    assert "not finite in float32 already" in result.stdout


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("mine", "must be `package.module:function`, such as `my_training:model_step`"),
        ("mine:", "must be `package.module:function`"),
        ("mine.py:model_step", "names a file. Write it as a module: `mine:model_step`"),
        ("./sub/mine.py:f", "Write it as a module: `sub.mine:f`"),
        ("nowhere:f", "there is no module `nowhere` in "),
        ("mine.inner:f", "'mine' is not a package|no module `mine.inner`"),
        ("broken:f", r"importing `broken` failed: ZeroDivisionError: division by zero \(broken.py"),
        ("needy:f", "importing `needy` failed, because it needs `a_package_that_nobody_has`"),
        ("mine:model_stop", "there is no `model_stop` in `mine`. Did you mean `model_step`"),
        ("mine:xyz", "It defines: model_step, loss, deep"),
        ("mine:constant", "is int; it must be a function without arguments"),
        ("mine:loss", "failed: TypeError: loss.. missing 2 required positional arguments"),
        ("mine:three", "`inspect mine:three` got int 3; it needs `.model, batches, loss.`"),
        ("mine:crashes", r"`mine:crashes` failed: KeyError: 'missing' \(mine.py, line 25\)"),
        ("mine:vector", r"`loss.model, batch.` returned a torch.float32 tensor of shape .16, 4."),
        ("mine:wrong_shapes", r"the training step failed: RuntimeError: mat1 and mat2.*mine.py"),
        ("mine:empty", "`inspect mine:empty`: the batches are empty"),
        ("mine:frozen", "`inspect mine:frozen`: ReLU has no parameter that requires a gradient"),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(target, words):
    import re

    result = inspect(target, "--steps", "1", "--format", "bf16")
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert re.search(words, " ".join(result.stderr.split())), result.stderr


def test_options_that_are_wrong_are_refused(folder):
    assert (
        "'fp7' is not one of fp16, bf16, e5m2, e4m3"
        in inspect("mine:model_step", "--format", "fp7").stderr
    )
    said = inspect("mine:model_step", "--device", "nothing").stderr
    assert "`--device nothing` cannot be used" in said
    (folder / "full").mkdir()
    (folder / "full" / "file").write_text("")
    result = inspect("mine:model_step", "--out", "full")
    assert result.exit_code == 2 and "`full` is not empty" in result.stderr


def test_a_real_process_is_quiet_when_piped_and_finds_the_module_next_to_it(folder):
    run = subprocess.run(
        [sys.executable, "-m", "gradscale.cli.main", "inspect", "mine:model_step", "--steps", "1",
         "--format", "bf16", "--no-color"],
        capture_output=True, text=True, cwd=folder, timeout=240, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stderr == "" and "\x1b" not in run.stdout
    assert "bfloat16 is safe" in run.stdout
    assert list((folder / "runs").glob("inspect-model_step-*/advice.json"))


def test_help_has_examples_and_the_convention():
    text = " ".join(inspect("--help").stdout.split())
    assert "FUNCTION takes no argument and returns `(model, batches, loss)`" in text
    assert "gradscale inspect my_training:model_step --format fp16 --limit 0.001 --json" in text


def test_cuda_is_refused_in_words_where_there_is_none():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    result = inspect("mine:model_step", "--device", "cuda")
    assert result.exit_code == 2 and "`--device cuda` cannot be used" in result.stderr


def test_the_page_has_the_verdict_the_line_to_write_and_the_scale_that_the_table_has(folder):
    result = inspect("mine:model_step", "--steps", "1", "--format", "fp16,bf16", "--out", "out")
    state = json.loads((folder / "out" / "advice.json").read_text())
    for verdict in state["verdicts"]:
        advice = read(folder / "out" / verdict["format"]).header.note["advice"]
        assert advice["lines"][0].startswith(f"{verdict['format']} is ")
        assert advice["lines"][1] == f"Write: `{verdict['code']}`"
        exponents = {"default": "log2_default", "one scale": "log2_scale"}
        assert advice["log2_scale"] == verdict.get(exponents.get(verdict["scaling"]))
        assert f"\n{verdict['format']}, {verdict['level']}:\n  {verdict['code']}" in result.stdout
