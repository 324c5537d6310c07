"""One recorder writes a recording; what is no recording is never cut, and no link is followed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from gradscale import GradScaler, Recorder
from gradscale.recording import read


def steps(recorder: Recorder, count: int = 1) -> None:
    for _ in range(count):
        recorder.note_loss(1.0)
        recorder.step()


def test_a_second_recorder_on_an_open_file_is_refused(tmp_path):
    with Recorder(tmp_path) as first:
        steps(first)
        for given in ({}, {"step": 1}, {"step": 0}):
            with pytest.raises(BlockingIOError, match=r"another recorder is writing there.*close"):
                Recorder(tmp_path / "recording.jsonl", **given)
        steps(first)
    with Recorder(tmp_path, step=2) as second:
        steps(second)
    assert [step.step for step in read(tmp_path).steps] == [0, 1, 2]


def test_a_recorder_that_could_not_begin_keeps_nothing_locked(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable") as kept:  # its frames live on
        Recorder(tmp_path, note={"model": object()})
    with pytest.raises(ValueError, match="bogus"):
        Recorder(tmp_path, format="bogus")
    Recorder(tmp_path).close()
    assert kept.traceback


def test_a_forked_child_does_not_write_into_its_parents_recording(tmp_path):
    recorder = Recorder(tmp_path)
    steps(recorder)
    child = os.fork()
    if child == 0:
        import warnings

        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            steps(recorder, 3)
            recorder.flush()
            recorder.close()
        told = [str(one.message) for one in said]
        os._exit(int(len(told) == 1 and "forked from" in told[0] and "Recorder" in told[0]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    steps(recorder)
    recorder.close()
    recording = read(tmp_path)
    assert [step.step for step in recording.steps] == [0, 1] and recording.end["steps"] == 2


@pytest.mark.parametrize(
    "text", ["Dear diary,\n", '{"kind": "step", "step": 0}\n', "{}\n", "no newline", '{"kind":"ru']
)
def test_a_file_that_is_no_recording_is_not_cut(text: str, tmp_path: Path):
    path = tmp_path / "diary.txt"
    path.write_text(text)
    if text.startswith('{"kind":"ru'):  # but the first line of a killed recorder is
        Recorder(path, step=0).close()
        return
    with pytest.raises(ValueError, match=r"line 1, is no line of a recording, so nothing of it"):
        Recorder(path, step=0)
    assert path.read_text() == text


def test_a_recording_damaged_in_its_middle_is_not_cut_there(tmp_path):
    with Recorder(tmp_path) as recorder:
        steps(recorder, 4)
    path = tmp_path / "recording.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], "damage\n", *lines[3:]]))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"line 3, is no line of a recording"):
        Recorder(path, step=4)
    assert path.read_bytes() == before
    Recorder(path, step=0).close()  # the damage lies behind what is kept
    assert read(path).steps == ()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["link", "pipe", "device"])
def test_a_recording_goes_into_a_regular_file_only(kind: str, tmp_path: Path):
    path = tmp_path / "recording.jsonl"
    if kind == "link":
        (tmp_path / "precious").write_text("mine")
        path.symlink_to(tmp_path / "precious")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path = Path("/dev/full")
    for given in ({}, {"step": 0}):
        with pytest.raises(OSError, match=rf"`{path}` cannot be written: it is a .*{kind}"):
            Recorder(path, **given)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"`.*file/run/recording.jsonl` cannot be written: Not a dir"):
        Recorder(tmp_path / "file" / "run", GradScaler("cpu"))


def test_flush_writes_what_is_under_way(tmp_path):
    scaler = GradScaler("cpu")
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(tmp_path, scaler)
    scaler.scale(model(torch.ones(2, 4)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    recorder.flush()
    assert [step.step for step in read(tmp_path).steps] == [0]
    recorder.close()
    recorder.flush()
