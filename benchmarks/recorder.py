"""Cost of recording: a training step with a recorder against the same step without one.

Run it as ``python benchmarks/recorder.py`` (about a minute), or with ``--size`` for the bytes of a
recording of 100,000 steps. Steps with and without alternate in one process; what is reported is the
median of the paired ratios with its quartiles, and the difference in microseconds a step, which is
what does not depend on the model.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import gradscale
from pairs import paired, seconds
from where import arguments, began, describe, in_words, save

Step = Callable[[], None]


def small() -> tuple[nn.Module, torch.Tensor]:
    """Two layers on digits: a step is nothing but overhead."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)), torch.randn(32, 64)


def transformer() -> tuple[nn.Module, torch.Tensor]:
    """Four transformer layers of width 256 (3 M parameters), 8 sequences of 64."""
    layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), torch.randn(8, 64, 256)


MODELS = {"small": small, "transformer": transformer}
WAYS: dict[str, dict[str, Any]] = {
    "metrics to a sink": {"sink": True},
    "recorder": {},
    "recorder, amax": {"amax": True},
    "recorder, amax, exponents": {"amax": True, "exponents": True},
    "recorder and watch, every 100": {"watch": True},
}


def steps_of(
    make: Any, way: dict[str, Any] | None, folder: Path, stack: ExitStack, device: str
) -> Step:
    """One training step, recorded in the given way; None for a plain one."""
    torch.manual_seed(0)
    model, inputs = (part.to(device) for part in make())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, foreach=True)
    scaler = gradscale.GradScaler(device, init_scale=1024.0)
    recorder = None
    if way is not None:
        way = dict(way)
        if way.pop("sink", False):
            scaler.log_to(lambda metrics: None)
        else:
            watching = None
            if way.pop("watch", False):
                watching = stack.enter_context(gradscale.watch(model, scaler, every=100))
            recorder = gradscale.Recorder(folder / "recording.jsonl", scaler, watching, **way)
            stack.enter_context(recorder)

    def step() -> None:
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        if recorder is not None:
            recorder.note_loss(loss)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def repeated(step: Step, device: str, repeats: int) -> float:
    """Seconds of one step of several in a row."""

    def steps() -> None:
        for _ in range(repeats):
            step()

    return seconds(steps, device) / repeats


def measure(
    make: Any, way: dict[str, Any], device: str, rounds: int, repeats: int
) -> dict[str, float]:
    """Interleaved; a round of `repeats` steps each."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        plain, recorded = (
            partial(repeated, steps_of(make, each, Path(name), stack, device), device)
            for each in (None, way)
        )
        for steps in (plain, recorded):
            steps(10 if repeats > 1 else 3)
        times = paired(partial(recorded, repeats), partial(plain, repeats), rounds)
    row = times.row("recorded", "plain")
    more = (one - other for one, other in zip(*times, strict=True))
    return {
        "ratio": round(row["ratio"], 4),
        "low": round(row["ratio_low"], 4),
        "high": round(row["ratio_high"], 4),
        "microseconds": round(1e6 * statistics.median(more), 1),
    }


def cost(device: str, rounds: int) -> dict[str, Any]:
    cells: list[dict[str, Any]] = []
    for model, make in MODELS.items():
        repeats = 25 if model == "small" else 1
        for name, way in WAYS.items():
            figures = measure(make, way, device, rounds, repeats)
            cells.append({"model": model, "way": name, **figures})
            print(cells[-1], flush=True)
    return {"where": describe(device), "cells": cells}


def size() -> dict[str, Any]:
    """Bytes of 100,000 steps of 500 rows, by the writer that the tests use."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from recording.test_size import kept, write

    rows: list[dict[str, Any]] = []
    for every in (1, 100):
        for histogram in (False, True):
            with tempfile.TemporaryDirectory() as name:
                path = Path(name) / "recording.jsonl"
                exponents = torch.zeros(277, dtype=torch.int64)
                exponents[110:140] = 123_456
                write(path, 100_000, 500, every, exponents if histogram else None)
                seen, octaves = kept(path)
                rows.append(
                    {
                        "every": every,
                        "exponents": histogram,
                        "megabytes": round(path.stat().st_size / 1e6, 1),
                        "seen": len(seen),
                        "octaves": len(octaves),
                    }
                )
                print(rows[-1], flush=True)
    return {"date": str(date.today()), "rows": rows}


def cost_table(result: dict[str, Any]) -> str:
    lines = [f"{in_words(result['where'])}.", ""]
    lines += ["| model | what is added | ratio | quartiles | µs a step |", "|---|---|---|---|---|"]
    lines += [
        f"| {c['model']} | {c['way']} | {c['ratio']:.3f} | {c['low']:.3f} to {c['high']:.3f} "
        f"| {c['microseconds']:.0f} |"
        for c in result["cells"]
    ]
    return "\n".join(lines) + "\n"


def size_table(result: dict[str, Any]) -> str:
    lines = [
        "| measured every | `exponents=True` | MB | steps with rows | with histograms |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['every']} | {'yes' if row['exponents'] else 'no'} | {row['megabytes']} "
        f"| {row['seen']:,} | {row['octaves']} |"
        for row in result["rows"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], rounds=41, threads=1)
    parser.add_argument("--size", action="store_true", help="bytes instead of time")
    given = began(parser)
    name = "recorder" if given.device == "cpu" else f"recorder-{given.device}"
    result = size() if given.size else cost(given.device, given.rounds)
    table = size_table(result) if given.size else cost_table(result)
    save(given.output, "recorder-size" if given.size else name, result, table)
    print(table)


if __name__ == "__main__":
    main()
