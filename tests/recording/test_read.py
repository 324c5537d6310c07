"""Reading recordings: whole, torn, damaged, from a `gradscale train` folder, of other versions."""

import json
import math
import struct

import pytest

from gradscale.recording import Header, read
from gradscale.recording.schema import FirstNonfinite, Octaves, PlanGroup, RowInfo
from recordings import write_recording

HEADER = {"kind": "run", "version": 1, "format": "e5m2"}


def written(path, *lines):
    text = (line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    path.write_text("".join(text))
    return path


def test_every_entry_of_a_recording_is_read(tmp_path):
    path = write_recording(tmp_path / "recording.jsonl", steps=101, rows=8, layerwise=True)
    recording = read(path)
    assert recording.header.policy == {"name": "Dynamic", "config": {"init_scale": 65536.0}}
    assert recording.header.layerwise == "Windows()" and recording.header.measure_every == 10
    assert recording.rows[1] == RowInfo(1, "layers.1.linear", "module", "fp16", 4096, 1)
    assert [step.step for step in recording.steps] == list(range(101))
    assert len(recording.measured) == 11 and recording.end == {"kind": "end", "steps": 101}
    first = recording.steps[0]
    assert first.octaves[3].lowest < 0 and first.seen.methods[2] == "counted"
    assert first.seen.methods[1] == "extrapolated" and first.seen.negligible == {7}
    assert first.plan.groups[1] == PlanGroup(22, (4, 5, 6, 7))
    assert recording.structures[0].edges[0] == (0, 1) and recording.structures[0].rows[2] == 2
    skipped = recording.steps[96]
    assert (skipped.skipped, skipped.reason, skipped.overflow) == (True, "overflow", True)
    assert skipped.culprits == ("layers.0.act (output)",)


def test_a_folder_stands_for_the_recording_in_it(tmp_path):
    write_recording(tmp_path / "recording.jsonl", steps=5)
    assert len(read(tmp_path).steps) == 5


def test_the_steps_of_a_train_folder_are_read(tmp_path):
    line = {"step": 0, "loss": "nan", "scale": 8.0, "skipped": True, "reason": "nonfinite_loss"}
    written(tmp_path / "steps.jsonl", line, {**line, "step": 1, "reason": "overflow"})
    recording = read(tmp_path)
    assert recording.header == Header()
    assert math.isnan(recording.steps[0].loss) and recording.steps[0].reason == "nonfinite_loss"
    assert [step.overflow for step in recording.steps] == [False, True]


def test_a_torn_last_line_is_left_out(tmp_path):
    path = write_recording(tmp_path / "recording.jsonl", steps=20, end=False)
    whole = path.read_bytes()
    for missing in (2, 30, 90):
        path.write_bytes(whole[:-missing])
        recording = read(path)
        assert len(recording.steps) == 19 and recording.torn and recording.end is None
    path.write_bytes(whole[:-1])  # only the newline is missing
    assert len(read(path).steps) == 20


def test_damage_before_the_last_line_is_named(tmp_path):
    path = tmp_path / "recording.jsonl"
    good = {"kind": "step", "step": 0, "scale": 1.0, "skipped": False}
    lacking = {"kind": "step", "step": 0, "skipped": False}
    cases = {
        "line 2, is no line of a recording: Expecting": "{torn\n",
        "line 2, is no line of a recording: it is no object": "[1]\n",
        "line 2, is no line of a recording: it lacks 'scale'": lacking,
    }
    for message, line in cases.items():
        written(path, HEADER, line, good)
        with pytest.raises(ValueError, match=message):
            read(path)


def test_what_is_no_recording_is_refused(tmp_path):
    path = tmp_path / "recording.jsonl"
    with pytest.raises(FileNotFoundError, match=r"does not exist\. Pass a recording, or a folder"):
        read(path)
    with pytest.raises(
        FileNotFoundError, match=r"neither recording\.jsonl nor steps\.jsonl.*--record"
    ):
        read(tmp_path)
    written(path)
    with pytest.raises(ValueError, match="is empty: nothing was recorded"):
        read(path)
    written(path, {"kind": "step", "step": 0})
    with pytest.raises(ValueError, match=r"line 1.*begins with a line of kind 'run'"):
        read(path)
    path.write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match="recording"):
        read(path)


def test_a_later_version_is_refused_and_a_later_kind_of_line_is_not(tmp_path):
    path = tmp_path / "recording.jsonl"
    written(path, {**HEADER, "version": 2})
    with pytest.raises(ValueError, match=r"version 2, and this gradscale reads up to 1\. Upgrade"):
        read(path)
    written(path, {**HEADER, "color": "blue"}, {"kind": "weather", "sun": True})
    assert read(path).header.format == "e5m2"


def test_numbers_that_json_lacks_are_put_back_and_amax_is_the_float32_that_it_was(tmp_path):
    value = struct.unpack("<f", struct.pack("<f", 0.1))[0]
    line = {"kind": "step", "step": 0, "scale": 2.0, "skipped": False}
    line |= {"loss": "-inf", "amax": float(f"{value:.9g}"), "exponents": [-3, [1, 2]]}
    line |= {"first_nonfinite": {"backward": "a", "forward": None}, "optimizers": [True, False]}
    path = written(tmp_path / "recording.jsonl", HEADER, line)
    (step,) = read(path).steps
    assert step.loss == -math.inf and step.amax == value
    assert step.exponents == Octaves(-3, (1, 2)) and step.optimizers == (True, False)
    assert step.first_nonfinite == FirstNonfinite("a", None)
