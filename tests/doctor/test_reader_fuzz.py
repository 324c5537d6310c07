"""Real files, changed at random: every reader returns, or says in a ValueError what is wrong."""

from __future__ import annotations

import io
import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import gradscale
from gradscale.doctor import examine
from gradscale.doctor.inert.child import answer_to
from gradscale.recording import read
from gradscale.replay import replay
from gradscale.report import write_report
from recordings import write_recording

ODD: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**63, 10**30, 10**400, -0.0, 0.5, 1e308, float("inf"),
    float("nan"), "", "nan", "inf", "x" * 500, "\ud800", "\x1b[2J", [], [[]], {}, {"a": 1},
    [0] * 5000, [1, [2, [3]]],
]  # fmt: skip


def changed(value: Any, chance: random.Random) -> Any:
    """A copy with one part of it, anywhere, exchanged, left out or doubled."""
    if not isinstance(value, dict | list) or not value or chance.random() < 0.1:
        return chance.choice(ODD)
    at = chance.choice(list(value)) if isinstance(value, dict) else chance.randrange(len(value))
    copy = value.copy()
    action = chance.random()
    if action < 0.15:
        del copy[at]
    elif action < 0.3 and isinstance(copy, dict):
        copy[chance.choice(["", "-1", "scale", "step", "\ud800"])] = copy[at]
    else:
        copy[at] = changed(value[at], chance) if action < 0.8 else chance.choice(ODD)
    return copy


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Bytes exchanged, cut off, or written twice."""
    raw = bytearray(content)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(raw))
        match chance.randrange(4):
            case 0:
                raw[at] = chance.randrange(256)
            case 1:
                del raw[at : at + chance.randint(1, 40)]
            case 2:
                raw[at:at] = raw[at : at + chance.randint(1, 40)]
            case _:
                raw[at : at + 4] = chance.randbytes(4)
        raw = raw or bytearray(b"\0")
    return bytes(raw)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_recording_with_changed_lines_is_read_or_refused(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    file = write_recording(tmp_path / "recording.jsonl", steps=25, rows=4, layerwise=True)
    lines = file.read_text().splitlines()
    accepted = 0
    for _ in range(80):
        torn = list(lines)
        for _ in range(chance.choice([1, 1, 2])):
            at = chance.randrange(len(torn))
            torn[at] = json.dumps(changed(json.loads(lines[at]), chance))
        file.write_text("\n".join(torn) + "\n")
        try:
            recording = read(file)
        except ValueError as error:
            assert "recording.jsonl" in str(error)
            continue
        accepted += 1
        for use in (
            lambda: str(examine(file)),
            lambda: json.dumps(examine(file).to_dict(), allow_nan=False),
            lambda found=recording: replay(found, gradscale.Dynamic()),
            lambda found=recording: write_report(found, tmp_path / "out.html", force=True),
        ):
            try:
                use()
            except ValueError as error:
                assert str(error).count("`") >= 2, error
    assert accepted > 8


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_checkpoint_with_a_changed_state_is_examined_or_refused(
    seed: int, tmp_path: Path
) -> None:
    chance = random.Random(seed)
    states = [
        gradscale.GradScaler("cpu", policy=policy, layerwise=True).state_dict()
        for policy in (gradscale.Dynamic(), gradscale.LogNormal(), gradscale.Band())
    ] + [torch.amp.GradScaler("cpu").state_dict(), {"loss_scaler0": {"loss_scale": 2.0}}]
    file = tmp_path / "x.pkl"
    for _ in range(60):
        tree = {"scaler": changed(chance.choice(states), chance), "iteration": chance.choice(ODD)}
        tree["args"] = {"loss_scale_window": chance.choice(ODD)}
        file.write_bytes(pickle.dumps(tree))
        try:
            diagnosis = examine(file)
        except ValueError as error:
            assert "x.pkl" in str(error)
            continue
        assert str(diagnosis) and json.dumps(diagnosis.to_dict(), allow_nan=False)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["archive", "older", "pickle"])
def test_a_file_with_changed_bytes_is_read_or_refused(form: str, tmp_path: Path) -> None:
    chance = random.Random(7)
    file = tmp_path / "x.pt"
    saved = {"scaler": gradscale.GradScaler("cpu").state_dict(), "w": torch.ones(3)}
    if form == "pickle":
        file.write_bytes(pickle.dumps(saved))
    else:
        torch.save(saved, file, _use_new_zipfile_serialization=form == "archive")
    whole = file.read_bytes()
    for _ in range(1500):
        answer = json.loads(answer_to(io.BytesIO(damaged(whole, chance)), 384, bounded=False))
        assert isinstance(answer, str | list)
    for _ in range(40):
        file.write_bytes(damaged(whole, chance))
        try:
            examine(file)
        except ValueError as error:
            assert "x.pt" in str(error)
