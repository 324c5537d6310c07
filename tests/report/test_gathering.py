"""A recording gathered for the page: timeline, histograms, network, rows, summary."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradscale.formats import FloatFormat
from gradscale.recording import read
from gradscale.report.counting import fate
from gradscale.report.histograms import snapshots_of
from gradscale.report.network import WIDTH, depths, network_of
from gradscale.report.payload import payload_of, to_json
from gradscale.report.ranges import ranges_of
from gradscale.report.run import Run
from gradscale.report.summary import summary_of
from gradscale.report.timeline import Timeline, extremes
from report_recordings import MadeUp, from_tensors


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = MadeUp().write(tmp_path_factory.mktemp("run") / "recording.jsonl")
    return Run.of(read(path), "made up")


def test_every_skipped_step_is_kept_with_its_reason(run):
    steps = [step.step for step in run.timeline.skipped]
    assert steps == [89, 179, 269, 359]
    assert run.timeline.reasons == {"overflow": 4}


def test_a_skip_without_a_reason_is_called_unknown(tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_text('{"step": 0, "scale": 2.0, "skipped": true, "reason": null}\n')
    assert Timeline.of(read(path)).reasons == {"unknown": 1}


@given(
    st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), min_size=1, max_size=300),
    st.integers(8, 60),
)
def test_thinning_keeps_the_ends_and_every_extreme(values, limit):
    series = np.array(values)
    kept = extremes([series], limit)
    assert kept[0] == 0 and kept[-1] == len(values) - 1
    assert (np.diff(kept) > 0).all() and len(kept) <= limit + 4
    if not np.isnan(series).all():
        assert np.nanmax(series[kept]) == np.nanmax(series)
        assert np.nanmin(series[kept]) == np.nanmin(series)


def test_snapshots_are_spread_and_end_with_the_last_histograms(tmp_path):
    path = MadeUp(steps=600, every=5, octaves_every=5, rows=4).write(tmp_path / "recording.jsonl")
    recording = read(path)
    found = snapshots_of(recording, limit=6)
    assert [snapshot.step for snapshot in found] == [0, 120, 240, 355, 475, 595]
    last = recording.steps[595]
    assert found[-1].rows[2].octaves == last.octaves[2]
    assert found[-1].rows[2].exponent == last.seen.exponent[2]


def test_a_row_measured_between_two_snapshots_is_in_the_later_one(tmp_path):
    lines = [
        {"kind": "run", "version": 1},
        {
            "kind": "rows",
            "rows": [
                {
                    "id": i,
                    "name": f"w{i}",
                    "row_kind": "parameter",
                    "format": "fp16",
                    "numel": 4,
                    "order": i,
                }
                for i in range(2)
            ],
        },
    ]
    for step in range(5):
        row = "1" if step == 2 else "0"
        lines.append(
            {
                "kind": "step",
                "step": step,
                "scale": 4.0,
                "skipped": False,
                "octaves": {row: [step, [1]]},
            }
        )
    path = tmp_path / "recording.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, last = snapshots_of(read(path), limit=2)
    assert set(first.rows) == {0} and set(last.rows) == {0, 1}
    assert last.rows[1].step == 2 and last.rows[0].step == 4
    # Nobody said how it was stored: at the loss scale.
    assert last.rows[0].exponent == 2 and last.rows[0].offset == 0


def test_elements_lost_before_they_were_counted_are_unseen(tmp_path):
    path = from_tensors(tmp_path / "recording.jsonl", {"w": torch.tensor([0.5, 0.25, 0.0])})
    text = (
        path.read_text()
        .replace('"nonzero": [2]', '"nonzero": [5]')
        .replace('"flushed": [0]', '"flushed": [3]')
    )
    path.write_text(text)
    assert snapshots_of(read(path))[0].rows[0].unseen == 3


def test_what_a_cast_had_flushed_is_put_where_the_histogram_continues(tmp_path):
    generator = torch.Generator().manual_seed(1)
    true = {"w": torch.randn(4000, generator=generator) * 2.0**-23}
    half = {"w": true["w"].to(torch.float16).float()}
    lost = int((half["w"] == 0).sum())
    path = from_tensors(tmp_path / "recording.jsonl", half, 0)
    text = path.read_text().replace('"flushed": [0]', f'"flushed": [{lost}]')
    path.write_text(text.replace(f'"nonzero": [{4000 - lost}]', '"nonzero": [4000]'))
    found = snapshots_of(read(path))[0].rows[0]
    estimated = sum(found.octaves.counts[: found.guessed])
    assert found.guessed > 0 and estimated + found.unseen == lost
    now = fate(found, ranges_of(set())["fp16"], 0)
    assert (now.lost, now.nonzero) == (lost, 4000)
    # At a scale 8 octaves higher nearly all of them would have been kept; so says the estimate.
    truly = int((true["w"] * 2.0**8).to(torch.float16).eq(0).sum())
    assert truly < 10 and fate(found, ranges_of(set())["fp16"], 8).lost - found.unseen < 30


def test_a_row_adds_up_over_the_run(run):
    seen = [step.seen for step in run.recording.measured]
    row = run.rows[23]
    assert row.flushed == sum(one.flushed[23] for one in seen)
    assert row.nonzero == sum(one.nonzero[23] for one in seen)
    shares = [one.flushed[23] / one.nonzero[23] for one in seen]
    assert row.worst == max(shares)
    assert row.worst_step == 20 * shares.index(max(shares))
    assert row.last is not None and row.last[0].step == 380


def test_the_summary_tells_what_the_recording_holds(run):
    it = summary_of(run)
    gradients = [row for row in range(24) if row % 5 != 4]
    seen = [step.seen for step in run.recording.measured]
    flushed = sum(one.flushed[row] for one in seen for row in gradients)
    nonzero = sum(one.nonzero[row] for one in seen for row in gradients)
    assert it["lost"]["share"] == flushed / nonzero
    assert it["lost"]["method"] == "counted" and it["lost"]["measured_steps"] == 20
    assert it["lost"]["last"] == seen[-1].lost_share
    assert (it["steps"], it["skipped"], it["groups"]) == (400, 4, 3)
    assert it["log2_scale"] == {"first": 16.0, "last": 16.0, "lowest": 16.0, "highest": 17.0}
    assert it["worst"][0]["row"] == "cast after layers.0.mlp"
    assert it["missing"] == []


def test_the_best_scale_of_a_run_loses_what_rounding_there_loses(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"w{i}": torch.randn(500, generator=generator) * 2.0 ** (-26 - 3 * i) for i in range(3)
    }
    it = summary_of(Run.of(read(from_tensors(tmp_path / "recording.jsonl", tensors, 4))))["best"]
    half = FloatFormat.of("fp16")

    def lost(scale: int) -> int:
        return sum(int((half.round(t * 2.0**scale) == 0).sum()) for t in tensors.values())

    assert it["recorded"] == {"log2_scale": 4, "lost": lost(4), "share": lost(4) / 1500}
    assert it["lost"] == lost(it["log2_scale"]) == 0
    assert lost(it["log2_scale"] - 1) > 0


def test_a_run_without_a_watch_says_how_to_have_one(tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_text('{"step": 0, "loss": 2.0, "scale": 65536.0, "skipped": false}\n')
    run = Run.of(read(path))
    assert "No gradients were measured" in run.missing[0]
    assert "gradscale.Recorder(path, scaler, watch)" in run.missing[0]
    it = summary_of(run)
    assert it["lost"] is None and it["best"] is None and it["worst"] == []


def test_a_recording_without_histograms_or_loss_says_so(tmp_path):
    path = MadeUp(steps=40, octaves_every=1000).write(tmp_path / "recording.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line.pop("octaves", None), line.pop("loss", None)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    missing = Run.of(read(path)).missing
    assert "no histograms" in missing[0] and "note_loss" in missing[1]


def test_the_network_runs_from_the_loss_and_goes_on_below():
    depth = depths(5, [(0, 1), (1, 2), (2, 3), (0, 3), (3, 4)])
    assert depth == [0, 1, 2, 3, 4]
    assert depths(3, [(0, 1), (1, 2), (2, 0)]) == [0, 1, 2]  # a cycle is cut


@given(st.integers(1, 120), st.data())
def test_no_two_parts_of_a_network_are_drawn_at_one_place(count, data):
    from gradscale.recording.schema import RecordedNetwork
    from gradscale.report.network import _placed

    edges = tuple((data.draw(st.integers(max(0, v - 5), v - 1)), v) for v in range(1, count))
    network = _placed(RecordedNetwork(tuple(map(str, range(count))), edges, {}), known=True)
    assert len(set(zip(network.x, network.y, strict=True))) == count
    assert max(network.x) < WIDTH


def test_without_a_structure_the_rows_are_a_chain(tmp_path):
    path = MadeUp(structure=False).write(tmp_path / "recording.jsonl")
    network = network_of(read(path))
    assert not network.known
    assert len(network.names) == 20  # activations have no place in the backward pass
    assert network.edges == tuple((i, i + 1) for i in range(19))


def test_a_long_run_is_thinned_but_all_its_skips_are_kept(run):
    payload, _ = payload_of([run] * 5, "title")
    assert payload["runs"][0]["skips"]["step"]["n"] == 4
    assert not payload["runs"][0]["timeline"]["thinned"]


def test_no_text_of_a_recording_can_end_the_script_that_holds_it():
    text = to_json({"name": "</script><script>alert(1)</script>"})
    assert "<" not in text and json.loads(text)["name"].startswith("</script>")


def test_rows_keep_the_order_of_the_backward_pass(tmp_path):
    path = MadeUp(rows=5).write(tmp_path / "recording.jsonl")
    text = path.read_text()
    for row in range(5):
        text = text.replace(f'"order":{row}}}', f'"order":{9 - row}}}')
    path.write_text(text)
    assert Run.of(read(path)).order == [4, 3, 2, 1, 0]


def test_equal_recordings_give_equal_pages(tmp_path: Path):
    from gradscale.report import write_report

    path = MadeUp(steps=60).write(tmp_path / "recording.jsonl")
    one, two = (write_report(path, tmp_path / f"{name}.html") for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
