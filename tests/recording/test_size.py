"""100,000 steps of 500 rows stay under 50 MB, and a small network keeps everything."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from gradscale.backward.measurements import Counts
from gradscale.host_copies import HostCopies
from gradscale.plans.window import Window
from gradscale.recording import read
from gradscale.recording.facts import Facts
from gradscale.recording.log import Log
from gradscale.recording.pending import Pending
from gradscale.watching.rows import Row

MEGABYTE = 1_000_000
KINDS = ("parameter", "module", "cast", "activation")


def rows(count: int, draw: random.Random) -> list[Row]:
    """Rows as a large network has them: long names, large counts, 30 octaves."""
    return [
        Row(
            name=f"encoder.layers.{index // 4}.attention.projection_{index % 4}.weight",
            kind=KINDS[index % 4],
            format="fp16",
            counts=Counts(
                amax=draw.random(),
                zero=draw.randrange(10**6),
                lowest=-30 - index % 10,
                octaves=tuple(draw.randrange(1, 10**5) for _ in range(30)),
            ),
            exponent=16,
            flushed=draw.randrange(10**5),
            method="counted" if index % 4 == 2 else "extrapolated",
            window=Window(2, 11, 13),
        )
        for index in range(count)
    ]


def write(path: Path, steps: int, count: int, every: int, exponents: torch.Tensor | None) -> None:
    draw = random.Random(0)
    few = [rows(count, draw) for _ in range(3)]
    log = Log(path, 50 * MEGABYTE, None)
    log.begin(None, "fp16", every, {})
    for step in range(steps):
        measured = few[step % 3] if step % every == 0 else None
        skipped = step % 500 == 499
        facts = Facts(
            scale=65536.0,
            skipped=skipped,
            reason="overflow" if skipped else None,
            overflow=skipped,
            culprits=tuple(row.name for row in few[0]) if skipped else (),
            amax=draw.random(),
            exponents=exponents,
        )
        loss = HostCopies([torch.tensor(draw.random())])
        log.write(Pending(step, loss, None, facts, measured))
    log.end(steps, None)


def kept(path: Path) -> tuple[list[int], list[int]]:
    recording = read(path)
    seen = [step.step for step in recording.steps if step.seen is not None]
    return seen, [step.step for step in recording.steps if step.octaves]


@pytest.mark.slow
@pytest.mark.parametrize(("every", "histogram"), [(1, False), (100, True)])
def test_a_hundred_thousand_steps_of_five_hundred_rows_stay_under_fifty_megabytes(
    every, histogram, tmp_path
):
    path = tmp_path / "recording.jsonl"
    exponents = None
    if histogram:
        exponents = torch.zeros(277, dtype=torch.int64)
        exponents[110:140] = 123_456
    write(path, 100_000, 500, every, exponents)
    size = path.stat().st_size
    assert size < 50 * MEGABYTE
    recording = read(path)
    assert len(recording.steps) == 100_000 and len(recording.rows) == 500
    seen, octaves = kept(path)
    print(f"{size / MEGABYTE:.1f} MB, {len(seen)} steps with rows, {len(octaves)} with histograms")
    assert 0 in seen and 0 in octaves and set(octaves) <= set(seen)
    if not histogram:
        assert len(seen) > 400 and len(octaves) > 100
    late = [b - a for a, b in pairwise(seen) if a > 50_000]
    early = [b - a for a, b in pairwise(seen) if a < 1_000]
    assert sum(late) / len(late) >= sum(early) / len(early)
    assert max(late) < 10_000  # nothing stays unseen for long


def test_a_small_network_keeps_every_measurement(tmp_path):
    path = tmp_path / "recording.jsonl"
    write(path, 2_000, 4, 10, None)
    seen, octaves = kept(path)
    assert seen == octaves == list(range(0, 2_000, 10))


def test_a_resumed_recording_thins_on_from_where_it_was(tmp_path):
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    write(whole, 600, 200, 1, None)
    lines = whole.read_bytes().splitlines(keepends=True)
    cut = next(i for i, line in enumerate(lines) if b'"step":300,' in line)
    resumed.write_bytes(b"".join(lines[: cut + 50]))
    log = Log(resumed, 50 * MEGABYTE, 300)
    log.close()  # one writer at a time
    again = Log(resumed, 50 * MEGABYTE, 300)
    assert log._budget == again._budget and log._budget.lines == 300
    assert log._budget.seen > 0 and log._budget.octaves > 0
    assert log._table.named() == again._table.named() and len(log._table.named()) == 200


@pytest.mark.parametrize("name", ["recorder", "recorder-size"])
def test_the_page_shows_the_tables_of_the_benchmark(name):
    root = Path(__file__).parents[2]
    table = (root / "benchmarks" / "results" / f"{name}.md").read_text()
    assert table in (root / "docs" / "recording.md").read_text()
