"""What is measured at real size: rows that are kept, the time they may take, their page."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import real_size
from real import device as on_device
from real.page import NOT_RUN, page, section, share
from real.rows import Budget, Key, Rows, read
from real.ways import BASE
from where import RESULTS

ROOT = Path(__file__).parents[2]
KEYS = [Key("GPT-2-124M", way, True, False) for way in ("float32", "bf16", "TF32")]


def made_up(key, hardware="a GPU", **more):
    figures = {
        "ms": 50.0, "ratio": [0.9, 1.0, 1.1], "peak": 2**30, "skipped": 1, "losses": [2.0] * 50,
        "host_reads": 0, "host_reads_torch": 0, "where": {"device": "cuda", "hardware": hardware},
    }  # fmt: skip
    return {**figures, **more} if "error" not in more else {**more, "where": figures["where"]}


def test_rows_that_stand_there_are_not_measured_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = Rows(path, tmp_path / "none", "a GPU")
    assert rows.missing(KEYS) == KEYS
    rows.add(KEYS[0], made_up(KEYS[0]))
    rows.add(KEYS[1], made_up(KEYS[1], error="out of memory"))
    with path.open("a") as file:
        file.write('{"task": "GPT-2-1')  # killed here
    again = Rows(path, tmp_path / "none", "a GPU")
    assert again.missing(KEYS) == KEYS[1:]
    again.add(KEYS[1], made_up(KEYS[1]))
    assert Rows(path, tmp_path / "none", "a GPU").missing(KEYS) == KEYS[2:]
    assert len(read(path)) == 2


def test_a_session_goes_on_from_the_results_of_an_earlier_one(tmp_path):
    before = Rows(tmp_path / "before.jsonl", tmp_path / "none", "a GPU")
    before.add(KEYS[0], made_up(KEYS[0]))
    assert Rows(tmp_path / "out" / "a.jsonl", before.path, "a GPU").missing(KEYS) == KEYS[1:]
    assert Rows(tmp_path / "out" / "b.jsonl", before.path, "another").missing(KEYS) == KEYS


def test_rows_of_two_machines_are_not_mixed(tmp_path):
    Rows(tmp_path / "a.jsonl", tmp_path / "none", "a GPU").add(KEYS[0], made_up(KEYS[0]))
    with pytest.raises(ValueError, match=r"holds rows of a GPU; this is another\. Pass another"):
        Rows(tmp_path / "a.jsonl", tmp_path / "none", "another")


def test_no_row_begins_that_could_not_end_in_time():
    assert Budget(61).fits_another() is False  # the first one may take a minute
    budget = Budget(100)
    assert budget.fits_another()
    budget.took(70)
    budget.took(10)
    assert budget.longest == 70 and budget.fits_another()
    budget.took(81)
    assert not budget.fits_another()


def run(monkeypatch, folder, *arguments):
    monkeypatch.setattr(sys, "argv", ["real_size.py", *arguments, "--output", str(folder)])
    return real_size.main()


TRIED = ("--tiny", "--device", "cpu", "--rounds", "2", "--steps", "12", "--tasks", "GPT-2-124M")


def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch, capsys):
    ways = ("--ways", "float32")
    assert run(monkeypatch, tmp_path, *TRIED, *ways, "--minutes", "0") == 3
    assert "the next call goes on" in capsys.readouterr().out
    assert (tmp_path / "real_size-tiny-cpu.md").read_text() == page([])
    assert run(monkeypatch, tmp_path, *TRIED, *ways) == 0
    path = tmp_path / "real_size-tiny-cpu.jsonl"
    rows = read(path)
    assert [(row["way"], row["fused"]) for row in rows] == [("float32", True), ("float32", False)]
    assert rows[0]["where"]["torch"] == torch.__version__ and rows[0]["where"]["date"]
    before = path.read_bytes()
    monkeypatch.setattr(real_size, "measured", None)  # nothing is measured any more
    assert run(monkeypatch, tmp_path, *TRIED, *ways) == 0
    assert path.read_bytes() == before


def test_a_row_that_fails_is_named_and_the_others_are_measured(tmp_path, monkeypatch, capsys):
    def fails(build, *rest):
        if build.args[1].name == "float32":
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried much.")
        return made_up(KEYS[0])

    monkeypatch.setattr(real_size, "measured", fails)
    monkeypatch.setattr(real_size, "at_work", lambda build: None)
    ways = ("--ways", "float32", "bf16")
    assert run(monkeypatch, tmp_path, *TRIED, *ways) == 1
    assert "wrong: GPT-2-124M, float32, fused: OutOfMemoryError: CUDA out of memory." in (
        capsys.readouterr().out.splitlines()
    )
    text = (tmp_path / "real_size-tiny-cpu.md").read_text()
    assert "| float32 | fused | failed: OutOfMemoryError: CUDA out of memory. |" in text
    assert "| bf16 | foreach | 163,840 |" in text


def test_a_step_of_ours_that_waits_for_the_device_is_named():
    assert real_size.waits({"way": "fp16, layerwise", "host_reads": 1, "host_reads_torch": 0})
    assert not real_size.waits({"way": "fp16, layerwise", "host_reads": 1, "host_reads_torch": 1})
    assert not real_size.waits({"way": BASE.name, "host_reads": 1, "host_reads_torch": 0})
    assert not real_size.waits({"way": "fp16, layerwise", "host_reads": None})


def test_a_cpu_measures_toys_only(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, "--device", "cpu")
    assert "there is no GPU here. Pass `--tiny`" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, "--device", "cpu", "--tiny", "--tasks", "BERT")
    assert "no such task: BERT" in capsys.readouterr().err


def test_a_page_says_what_was_not_run():
    assert section([]) == NOT_RUN
    assert page([]) == f"# Training at real size\n\n{NOT_RUN}\n"


def test_a_table_shows_every_way_with_fused_optimizers_first():
    layerwise = {"scales": 3, "edges": 7, "interval": 100, "measuring": [1.9, 2.0, 2.1]}
    rows = [
        made_up(KEYS[0]) | Key("GPT-2-124M", "fp16, layerwise", False, False)._asdict(),
        made_up(KEYS[0], losses=[2.5] * 50, **layerwise)
        | Key("GPT-2-124M", "fp16, layerwise", True, False)._asdict(),
        made_up(KEYS[0]) | KEYS[0]._asdict(),
    ]
    lines = section(rows).splitlines()
    assert lines[-3:] == [
        "| fp16, layerwise | fused | 163,840 | 1.000 [0.900, 1.100] | 1.00 GiB | 1 of 50 | 3 (7) | "
        "2.000 [1.900, 2.100] | 0.99% | 0 | 2.5000 (+0.5000) |",
        "| float32 | fused | 163,840 | 1.000 [0.900, 1.100] | 1.00 GiB | 1 of 50 |  |  |  | 0 | "
        "2.0000 |",
        "| fp16, layerwise | foreach | 163,840 | 1.000 [0.900, 1.100] | 1.00 GiB | 1 of 50 |  |  "
        "|  | 0 |  |",
    ]
    assert share(rows[1]) == pytest.approx(0.01 / 1.01)
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_the_page_shows_the_results_that_there_are():
    results = read(RESULTS / "real_size-cuda.jsonl")
    shown = (ROOT / "docs" / "results.md").read_text()
    generated = f"<!-- real size: begin -->\n\n{section(results)}\n\n<!-- real size: end -->"
    assert generated in shown, "run `python benchmarks/real_size.py --page`"
    assert all(row["where"]["device"] == "cuda" for row in results)


class Event:
    """Of a GPU that is not there: a tick for each thing asked of it."""

    ticks = 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        Event.ticks += 1
        self.at = Event.ticks

    def synchronize(self):
        assert self.at

    def elapsed_time(self, other):
        return 1000.0 * (other.at - self.at)


@pytest.fixture
def gpu(monkeypatch):
    """What torch says of a GPU, without one."""
    modes = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 300)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    return modes


def test_a_gpu_is_asked_for_time_memory_and_host_reads(gpu):
    assert on_device.elapsed(lambda: None, "cuda") == 1.0
    assert (on_device.allocated("cuda"), on_device.peak("cuda")) == (100, 300)

    def work():
        assert gpu == ["warn"]
        warnings.warn("Synchronization debug mode does not detect all", stacklevel=1)
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    assert on_device.host_reads(work, "cuda") == 2
    assert gpu == ["warn", "default"]
