"""A run that was stopped anywhere goes on bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gradscale.training import (
    COMPARED,
    Interrupted,
    RunFolder,
    Settings,
    load_data,
    run,
    settings_for,
)

STEPS = 6


@pytest.fixture(scope="module")
def data():
    return load_data(settings_for("digits", device="cpu"))


def settings(**given) -> Settings:
    fields = {"device": "cpu", "steps": STEPS, "batch_size": 8, "threads": 1, **given}
    return settings_for("digits", **fields)


class StopAfter:
    """True at the given question."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


def state_of(folder: Path) -> dict[str, object]:
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    del state["seconds"]
    return state


def assert_same(left: object, right: object) -> None:
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for name in left:
            assert_same(left[name], right[name])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for pair in zip(left, right, strict=True):
            assert_same(*pair)
    else:
        assert left == right


def assert_same_run(left: Path, right: Path) -> None:
    assert (left / "steps.jsonl").read_bytes() == (right / "steps.jsonl").read_bytes()
    assert_same(state_of(left), state_of(right))


@pytest.mark.parametrize("scaling", COMPARED)
def test_stopping_and_resuming_changes_nothing(scaling, data, tmp_path):
    # 2^40 overflows at first, so the scale moves.
    chosen = settings(policy=scaling, init_scale=None if scaling == "none" else 2.0**40)
    whole = run(chosen, data, RunFolder(tmp_path / "whole"))
    parts = RunFolder(tmp_path / "parts")
    for _ in range(2):
        with pytest.raises(Interrupted):
            run(chosen, data, parts, stop=StopAfter(2))
    resumed = run(chosen, data, parts)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    clockless = {name: value for name, value in whole.items() if name != "ms_per_step"}
    assert clockless == {name: resumed[name] for name in clockless}


@pytest.mark.parametrize("tail", [b"", b'{"step": 4, "lo', b'{"step": 4}\n{"step": 5}\n{"st'])
def test_lines_beyond_the_checkpoint_are_dropped(tail, data, tmp_path):
    run(settings(), data, RunFolder(tmp_path / "whole"))
    folder = RunFolder(tmp_path / "torn")
    with pytest.raises(Interrupted):
        run(settings(), data, folder, stop=StopAfter(4))
    with (folder.path / "steps.jsonl").open("ab") as file:
        file.write(tail)
    (folder.path / ".checkpoint.pt.partial").write_bytes(b"half a file")
    run(settings(), data, folder)
    assert_same_run(tmp_path / "whole", folder.path)


def test_a_run_killed_before_its_first_checkpoint_starts_again(data, tmp_path):
    run(settings(), data, RunFolder(tmp_path / "whole"))
    folder = RunFolder(tmp_path / "early")
    (folder.path / "steps.jsonl").write_text('{"step": 0}\n')
    run(settings(), data, folder)
    assert_same_run(tmp_path / "whole", folder.path)


def test_a_finished_run_is_read_and_not_trained_again(data, tmp_path):
    folder = RunFolder(tmp_path)
    first = run(settings(), data, folder)
    steps = []
    assert run(settings(), data, folder, on_step=steps.append) == first
    assert not steps


def test_steps_taken_by_an_earlier_session_are_told(data, tmp_path):
    folder = RunFolder(tmp_path)
    told = []
    with pytest.raises(Interrupted):
        run(settings(), data, folder, on_resume=told.append, stop=StopAfter(2))
    assert not told
    run(settings(), data, folder, on_resume=told.append)
    run(settings(), data, folder, on_resume=told.append)
    assert told == [2, STEPS]


def test_checkpoints_come_every_so_many_steps(data, tmp_path):
    folder = RunFolder(tmp_path)
    counts = []

    def look(record) -> None:
        path = folder.path / "checkpoint.pt"
        counts.append(state_of(folder.path)["step"] if path.exists() else 0)

    run(settings(), data, folder, on_step=look, save_every=2)
    assert counts == [0, 0, 2, 2, 4, 4]
