"""A recorder in real processes over gloo: rank 0 writes, and nobody waits for it in vain."""

from gradscale.recording import read
from gradscale.replay import replay
from processes import ON_RANKS, on_two_ranks
from recording_worker import recorded

pytestmark = ON_RANKS


def test_all_ranks_run_the_same_code_and_one_recording_is_written(tmp_path):
    path = tmp_path / "recording.jsonl"
    first, second = on_two_ranks(recorded, str(path))
    assert first == second
    recording = read(path)
    assert path.read_text().count('"kind":"run"') == 1
    assert [step.step for step in recording.steps] == list(range(6))
    assert [step.skipped for step in recording.steps] == [step == 3 for step in range(6)]
    assert recording.steps[3].reason == "nonfinite_loss" and not recording.steps[3].overflow
    assert all(step.seen is not None for step in recording.steps[::2])
    weight = next(row for row in recording.rows if row.name == "0.weight")
    assert weight.numel % 32 == 0
    found = replay(recording)
    assert found.exact and [step.scale for step in found.steps] == [65536.0] * 6
