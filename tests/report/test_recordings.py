"""Which recordings a path stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradscale.report import write_report
from gradscale.report.recordings import recordings_at

LINE = '{"step": 0, "loss": 2.0, "scale": 65536.0, "skipped": false}\n'


def run_in(folder: Path, name: str = "steps.jsonl") -> Path:
    folder.mkdir(parents=True)
    (folder / name).write_text(LINE)
    return folder


def test_a_folder_is_called_by_its_name_and_so_is_the_recording_in_it(tmp_path):
    folder = run_in(tmp_path / "mine")
    assert [s.name for s in recordings_at([folder])] == ["mine"]
    assert [s.name for s in recordings_at([folder / "steps.jsonl"])] == ["mine"]


def test_a_file_of_another_name_is_called_by_it(tmp_path):
    (tmp_path / "monday.jsonl").write_text(LINE)
    assert [s.name for s in recordings_at([tmp_path / "monday.jsonl"])] == ["monday"]


def test_a_comparison_stands_for_all_of_its_runs_with_numbers_in_order(tmp_path):
    for seed in (10, 9, 1):
        run_in(tmp_path / "divisor-1" / "fp16-dynamic" / f"seed-{seed}")
    names = [source.name for source in recordings_at([tmp_path])]
    assert names == [f"divisor-1/fp16-dynamic/seed-{seed}" for seed in (1, 9, 10)]


def test_equal_names_are_told_apart_by_the_folder_above(tmp_path):
    paths = [run_in(tmp_path / part / "run") for part in ("a", "b")]
    assert [s.name for s in recordings_at(paths)] == ["a/run", "b/run"]


def test_equal_names_in_folders_of_equal_names_are_numbered(tmp_path):
    paths = [run_in(tmp_path / part / "x" / "run") for part in ("a", "b")]
    assert [s.name for s in recordings_at(paths)] == ["x/run (1)", "x/run (2)"]


def test_a_recording_that_is_named_twice_is_shown_once(tmp_path):
    folder = run_in(tmp_path / "mine")
    assert len(recordings_at([folder, folder / "steps.jsonl", tmp_path])) == 1


def test_a_folder_without_a_recording_says_what_it_lacks(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no recording.*gradscale\.Recorder"):
        recordings_at([tmp_path])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        recordings_at([tmp_path / "nowhere"])


def test_a_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="needs at least one recording"):
        write_report([], tmp_path / "report.html")
