"""Files made to hang, to fill the memory or to crash their reader end in a clear refusal."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gradscale
from gradscale.doctor import examine
from gradscale.doctor.inert.child import MOST_INSTRUCTIONS, answer_to
from gradscale.doctor.inert.reading import read_file
from gradscale.recording import read
from gradscale.recording.read import LARGEST_RECORDING, LONGEST_LINE
from invoking import call

STATE = torch.amp.GradScaler("cpu").state_dict()
KEYS = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")


def shared_tuples() -> bytes:
    """407 bytes: tuples of two, each the one before twice, 2^39 values in all."""
    put = b"".join(
        b"h" + bytes([i - 1]) + b"h" + bytes([i - 1]) + b"\x86q" + bytes([i]) for i in range(1, 40)
    )
    return b"\x80\x02)q\x00" + put


def as_a_setting() -> bytes:
    pairs = b"".join(
        b"X" + struct.pack("<I", len(key)) + key.encode()
        + (b"h\x27" if key == "growth_interval" else b"G" + struct.pack(">d", 2.0))
        for key in KEYS
    )  # fmt: skip
    return shared_tuples() + b"}(" + pairs + b"u."


def test_a_setting_that_holds_itself_a_billion_times_is_named_in_a_few_words(tmp_path: Path):
    (tmp_path / "x.pkl").write_bytes(as_a_setting())
    (problem,) = examine(tmp_path / "x.pkl").problems
    assert problem.code == "unreadable" and len(problem.evidence) < 300
    assert "`state['growth_interval']` is [[[...], [...]], [[...], [...]]]" in problem.evidence


def test_a_key_that_takes_a_year_to_hash_is_given_up(tmp_path: Path):
    (tmp_path / "x.pkl").write_bytes(shared_tuples() + b"}h\x27Ns.")
    with pytest.raises(ValueError, match="reading it takes longer than 1 s: no checkpoint does"):
        read_file(tmp_path / "x.pkl", seconds=1)


def test_keys_that_collide_are_given_up(tmp_path: Path):
    prime = 2**61 - 1  # of Python's hash of a number
    keys = b"".join(
        b"\x8a\x0a" + (i * prime).to_bytes(10, "little", signed=True) + b"N" for i in range(60_000)
    )
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02}(" + keys + b"u.")
    with pytest.raises(ValueError, match="reading it takes longer than 1 s"):
        read_file(tmp_path / "x.pkl", seconds=1)


def brackets(path: Path, megabytes: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data.pkl", "w") as file:
            file.write(b"\x80\x02")
            for _ in range(megabytes):
                file.write(b"]" * 2**20)
            file.write(b".")
    return path


def test_a_small_archive_that_unpacks_to_brackets_does_not_fill_the_memory(tmp_path: Path):
    file = brackets(tmp_path / "x.pt", 20)
    assert file.stat().st_size < 30_000
    with pytest.raises(ValueError, match="reading it takes more than 96 MB of memory"):
        read_file(file, megabytes=96)


@pytest.mark.slow
def test_as_large_as_it_was_reported_it_ends_within_the_limit_of_memory(tmp_path: Path):
    file = brackets(tmp_path / "x.pt", 200)
    code = "import resource,sys; from gradscale.doctor import examine\n"
    code += "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
    code += "try: examine(sys.argv[1])\nexcept ValueError as error: print(error)\n"
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before,"
    code += " resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    run = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True
    )
    *said, used = run.stdout.splitlines()
    assert "reading it takes more than 384 MB of memory" in said[0]
    ours, childs = map(int, used.split())
    assert ours < 50_000 and childs < 400_000  # kB


def test_without_limits_of_the_system_the_instructions_are_counted():
    many = b"\x80\x02" + b"N" * (MOST_INSTRUCTIONS + 9) + b"."
    far = b"\x80\x02Nr\xff\xff\xff\x7f."
    for pickled in (many, far):
        refusal = json.loads(answer_to(io.BytesIO(pickled), 384, bounded=False))
        assert refusal == f"it is a pickle of more than {MOST_INSTRUCTIONS:,} instructions"
    assert isinstance(
        json.loads(answer_to(io.BytesIO(pickle.dumps(STATE)), 384, bounded=False)), list
    )


def test_more_values_than_any_checkpoint_holds_are_refused(tmp_path: Path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps([["x" * 9] for _ in range(10)] * 1, 2))
    assert len(read_file(tmp_path / "x.pkl")) == 10
    (tmp_path / "x.pkl").write_bytes(pickle.dumps([str(i) * 40 for i in range(200_000)]))
    with pytest.raises(ValueError, match="it holds more values than any checkpoint"):
        read_file(tmp_path / "x.pkl")


def test_damaged_deflate_is_a_damaged_archive(tmp_path: Path):
    file = brackets(tmp_path / "x.pt", 1)
    content = bytearray(file.read_bytes())
    content[200:260] = os.urandom(60)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"it is a damaged archive|no pickle that Python"):
        read_file(file)


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ({"amp": {"loss_scaler0": {}}}, "The state has no scale that can be read"),
        ({"amp": {"loss_scaler0": 3}}, "The state has no scale that can be read"),
        ({"scaler": STATE | {"growth_interval": 10**4000}}, "The state cannot be restored"),
        ({"scaler": {**STATE, "gradscale": {"counters": {"steps": "many"}}}}, "cannot be restored"),
        ({"scaler": {**STATE, "gradscale": {"policy": 3}}}, "The state cannot be restored"),
        ({"scaler": {**STATE, "gradscale": {"layerwise": {"tracks": 7}}}}, "cannot be restored"),
        ({"scaler": {**STATE, "gradscale": []}}, "cannot be restored"),
        ({"\ud800": {"scaler": STATE | {"scale": 0.0}}}, "The scale is 0."),
    ],
)
def test_a_state_of_the_wrong_kind_is_a_finding(saved: Any, words: str, tmp_path: Path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(saved))
    result = call("doctor", tmp_path / "x.pkl")
    assert (result.exit_code, result.stderr) == (1, "") and words in result.stdout


def test_a_terminal_obeys_nothing_that_a_file_holds(tmp_path: Path):
    state = {**gradscale_state(), "scale": 0.0}
    state["gradscale"]["policy"]["name"] = "Dynamic\x1b[2J"
    held = {"x\x1b]0;mine\x07\u202e\ud800": {"scaler": state}}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(held))
    result = call("doctor", tmp_path / "x.pkl")
    assert result.exit_code == 1
    assert "\x1b" not in result.output and "\x07" not in result.output
    assert r"x\x1b]0;mine" in result.stdout and r"Dynamic\x1b[2J" in result.stdout
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a\x1b[2J": 1}))
    refused = call("doctor", tmp_path / "x.pkl")
    assert refused.exit_code == 2 and "\x1b" not in refused.stderr


def gradscale_state() -> dict[str, Any]:
    return gradscale.GradScaler("cpu").state_dict()


HEADER = {"kind": "run", "version": 1, "format": "fp16"}
STEP = {"kind": "step", "step": 0, "scale": 2.0, "skipped": False}
SEEN = {name: [0] for name in ("id", "flushed", "nonzero", "zero", "nonfinite", "amax")}
SEEN |= {name: [0] for name in ("exponent", "lo", "hi")} | {"lost": 0.0, "method": "counted"}
ROW = {"id": 0, "name": "w", "row_kind": "parameter", "format": "fp16", "numel": 1, "order": 0}
ROWS = {"kind": "rows", "rows": [ROW]}

HOSTILE_LINES: dict[str, tuple[Any, ...]] = {
    "nested": ("[" * 100_000,),
    "nested object": ('{"kind": "step", "x": ' + "[" * 100_000,),
    "negative step": (STEP | {"step": -5},),
    "step as text": (STEP | {"step": "5"},),
    "huge step": (STEP | {"step": 10**18},),
    "step of infinity": ('{"kind": "step", "step": 1e999, "scale": 1, "skipped": false}',),
    "huge loss": (STEP | {"loss": 10**400},),
    "huge scale": (STEP | {"scale": 10**309},),
    "negative scale": (STEP | {"scale": -1.0},),
    "no scale": (STEP | {"scale": None},),
    "huge amax": (STEP | {"amax": 1e300},),
    "loss of a list": (STEP | {"loss": [1, 2]},),
    "loss of a dictionary": (STEP | {"loss": {"nan": 1}},),
    "reason of a number": (STEP | {"reason": 3},),
    "row -1": (ROWS, STEP | {"octaves": {"-1": [0, [1]]}}),
    "unknown row": (STEP | {"octaves": {"3": [0, [1]]}},),
    "a million bins": (STEP | {"exponents": [0, [1] * 1_000_000]},),
    "bins without end": (STEP | {"exponents": [0]},),
    "bins far away": (STEP | {"exponents": [10**9, [1]]},),
    "seen of an unknown row": (STEP | {"seen": SEEN},),
    "seen with a short list": (ROWS, STEP | {"seen": SEEN | {"zero": []}}),
    "seen by another method": (ROWS, STEP | {"seen": SEEN | {"method": "magic"}}),
    "seen with letters": (ROWS, STEP | {"seen": SEEN | {"methods": "?"}}),
    "lost more than all": (ROWS, STEP | {"seen": SEEN | {"lost": 7.0}}),
    "plan of nothing": (STEP | {"plan": {"log2_scale": 3, "groups": [3]}},),
    "rows out of order": ({"kind": "rows", "rows": [ROW | {"id": 7}]},),
    "rows of numbers": ({"kind": "rows", "rows": [3]},),
    "edges to nowhere": ({"kind": "structure", "nodes": ["a"], "edges": [[0, 9]], "rows": {}},),
    "edges of one end": ({"kind": "structure", "nodes": ["a"], "edges": [[0]], "rows": {}},),
    "rows by text": ({"kind": "structure", "nodes": ["a"], "edges": [], "rows": {"x": 0}},),
}


@pytest.mark.parametrize("name", HOSTILE_LINES)
def test_a_line_of_the_wrong_kind_is_named_and_no_command_shows_a_traceback(
    name: str, tmp_path: Path
):
    lines = [HEADER, *HOSTILE_LINES[name], STEP]
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    file = tmp_path / "recording.jsonl"
    file.write_text("\n".join(texts) + "\n")
    with pytest.raises(ValueError, match=r"recording.jsonl`, line \d, is no line of a recording"):
        read(file)
    result = call("doctor", file)
    assert result.exit_code == 2 and result.stderr.startswith("Error: ")


@pytest.mark.parametrize("command", ["report", "replay"])
def test_the_other_commands_say_error_too(command: str, tmp_path: Path):
    file = tmp_path / "recording.jsonl"
    file.write_text(f"{json.dumps(HEADER)}\n{json.dumps(STEP | {'step': -5})}\n")
    given = ("--policy", "Dynamic") if command == "replay" else ()
    result = call(command, file, *given)
    assert result.exit_code == 2 and "is -5; it must lie between 0 and" in " ".join(
        result.stderr.split()
    )


def test_a_line_of_six_gigabytes_is_not_read(tmp_path: Path):
    file = tmp_path / "recording.jsonl"
    with file.open("wb") as sparse:
        sparse.truncate(6 * 2**30)
    with pytest.raises(ValueError, match=f"no more than {LARGEST_RECORDING:,} are read"):
        read(file)
    file.write_bytes(json.dumps(HEADER).encode() + b"\n")
    with file.open("ab") as sparse:
        sparse.truncate(LONGEST_LINE + 1000)
    with pytest.raises(ValueError, match=f"line 2, .*: it is longer than {LONGEST_LINE:,} bytes"):
        read(file)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(6 * 2**30)


@pytest.mark.parametrize("put", [pipe, endless])
@pytest.mark.parametrize("name", ["x.pt", "x.json", "x.jsonl"])
def test_what_is_no_regular_file_is_refused_at_once(
    put: Callable[[Path], None], name: str, tmp_path: Path
):
    put(tmp_path / name)
    with pytest.raises(ValueError, match="it is no regular file, but a"):
        examine(tmp_path / name)


@pytest.mark.parametrize("put", [pipe, endless, sparse])
def test_a_side_file_that_is_none_is_passed_over_and_named(
    put: Callable[[Path], None], tmp_path: Path
):
    torch.save(STATE, tmp_path / "scaler.pt")
    put(tmp_path / "trainer_state.json")
    (note,) = examine(tmp_path / "scaler.pt").findings
    assert note.code == "not-read" and "trainer_state.json` cannot be read" in note.evidence
    line = {"step": 0, "loss": 1.0, "scale": 2.0, "skipped": False, "reason": None}
    (tmp_path / "steps.jsonl").write_text(json.dumps(line) + "\n")
    put(tmp_path / "settings.json")
    assert "not-read" in [finding.code for finding in examine(tmp_path).findings]
    put(tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint.pt` cannot be read: "):
        examine(tmp_path)


def test_a_damaged_file_among_others_is_named(tmp_path: Path):
    torch.save({"scaler": STATE}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(b"junk")
    (note,) = examine(tmp_path).findings
    assert note.code == "not-read" and note.evidence.startswith("b.pt: ")


def test_steps_that_run_backwards_are_found(tmp_path: Path):
    lines = [{"step": n, "loss": 1.0, "scale": 2.0, "skipped": False} for n in (0, 1, 2, 2, 3, 1)]
    (tmp_path / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    problem = examine(tmp_path).problems[0]
    assert (problem.severity, problem.code) == ("error", "steps-run-backwards")
    assert "Step 2 is followed by step 2, among 6 of them" in problem.evidence
