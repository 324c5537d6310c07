"""Synthetic recordings of any size, for tests of whatever reads them; run it to write one.

``python tests/recordings.py FILE --steps 100000 --rows 500``
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KINDS = ("parameter", "module", "cast", "activation")


def write_recording(
    path: Path,
    *,
    steps: int = 300,
    rows: int = 12,
    measure_every: int = 10,
    octaves_every: int = 50,
    skip_every: int = 97,
    layerwise: bool = False,
    policy: str = "Dynamic",
    format: str = "fp16",
    seed: int = 0,
    end: bool = True,
) -> Path:
    """A run whose gradients shrink, that loses more toward its first layers, and skips some steps.

    Args:
        path: the file; its folder is made.
        steps: how many.
        rows: places measured.
        measure_every: steps between two that have `seen`.
        octaves_every: steps between two that have histograms.
        skip_every: every so many steps one is skipped, for all reasons in turn.
        layerwise: whether there are plans and the network's structure.
        policy: the policy's name in the header.
        format: what the rows are judged for.
        seed: of the numbers.
        end: whether the run was closed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for line in _lines(
            steps, rows, measure_every, octaves_every, skip_every, layerwise, policy, format, seed
        ):
            file.write(json.dumps(line) + "\n")
        if end:
            file.write(json.dumps({"kind": "end", "steps": steps}) + "\n")
    return path


def _lines(
    steps: int,
    rows: int,
    measure_every: int,
    octaves_every: int,
    skip_every: int,
    layerwise: bool,
    policy: str,
    format: str,
    seed: int,
) -> Iterator[dict[str, Any]]:
    draw = random.Random(seed)
    yield {
        "kind": "run",
        "version": 1,
        "gradscale": "0.1.0",
        "torch": "2.13.0",
        "started": "2026-11-25T03:00:00Z",
        "format": format,
        "policy": {"name": policy, "config": {"init_scale": 65536.0}},
        "layerwise": "Windows()" if layerwise else None,
        "measure_every": measure_every,
        "note": {"synthetic": True, "seed": seed},
    }
    names = [(_name(i, rows), KINDS[i % 4]) for i in range(rows)]
    declared = [
        {"id": i, "name": name, "row_kind": kind, "format": format, "numel": 4096, "order": i}
        for i, (name, kind) in enumerate(names)
    ]
    yield {"kind": "rows", "rows": declared}
    if layerwise:
        yield {
            "kind": "structure",
            "nodes": [name for name, _ in names],
            "edges": [[i, i + 1] for i in range(rows - 1)],
            "rows": {str(i): i for i in range(rows)},
        }
    reasons = ["overflow", "nonfinite_loss", "nonfinite_input", "nonfinite_parameter"]
    log2_scale, skips = 16, 0
    for step in range(steps):
        skipped = step % skip_every == skip_every - 1
        line: dict[str, Any] = {"kind": "step", "step": step, "scale": 2.0**log2_scale}
        line |= {"skipped": skipped, "reason": reasons[skips % 4] if skipped else None}
        line["loss"] = "nan" if line["reason"] not in (None, "overflow") else _loss(step, draw)
        line["amax"] = float(f"{0.3 * 2 ** -(step / steps * 4) * draw.uniform(0.5, 1):.9g}")
        line["groups"] = 2 if layerwise else 1
        if skipped:
            line["culprits"] = [names[-1][0]]
        measured = step % measure_every == 0
        if measured:
            line["seen"] = _seen(step, steps, rows, log2_scale, draw)
            if step % octaves_every == 0:
                line["octaves"] = {str(i): _octaves(i, rows, step, steps) for i in range(rows)}
            if layerwise and step % (10 * measure_every) == 0:
                half = rows // 2
                line["plan"] = {
                    "log2_scale": log2_scale,
                    "groups": [
                        {"exponent": log2_scale, "rows": list(range(half))},
                        {"exponent": log2_scale + 6, "rows": list(range(half, rows))},
                    ],
                }
        if skipped and measured:
            line["first_nonfinite"] = {"backward": names[-1][0], "forward": names[0][0]}
        yield line
        if skipped:
            log2_scale -= line["reason"] == "overflow"
            skips += 1
        elif log2_scale < 16 and step % skip_every == skip_every // 2:
            log2_scale += 1


def _name(index: int, rows: int) -> str:
    layer = (rows - 1 - index) // 4
    return (
        f"layers.{layer}.linear.weight",
        f"layers.{layer}.linear",
        f"cast after layers.{layer}",
        f"layers.{layer}.act (output)",
    )[index % 4]


def _loss(step: int, draw: random.Random) -> float:
    return float(f"{2.3 * 0.9 ** (step / 50) + 0.1 * draw.random():.9g}")


def _center(index: int, rows: int, step: int, steps: int) -> float:
    """Gradients are smaller in earlier layers, which come last, and shrink as training goes on."""
    return -8.0 - 22.0 * index / max(1, rows) - 3.0 * step / max(1, steps)


def _octaves(index: int, rows: int, step: int, steps: int) -> list[Any]:
    center = _center(index, rows, step, steps)
    lowest = round(center) - 10
    counts = [max(0, round(600 * 2.0 ** -(((lowest + i - center) / 3) ** 2))) for i in range(18)]
    return [lowest, counts]


def _seen(step: int, steps: int, rows: int, log2_scale: int, draw: random.Random) -> dict[str, Any]:
    lists: dict[str, list[Any]] = {
        name: [] for name in "id flushed nonzero zero nonfinite amax exponent lo hi".split()
    }
    for index in range(rows):
        lowest, counts = _octaves(index, rows, step, steps)
        total = sum(counts)
        exponent = 0 if KINDS[index % 4] == "activation" else log2_scale
        flushed = sum(c for o, c in enumerate(counts, lowest) if o + exponent < -25)
        top = lowest + len(counts)
        row = (index, flushed, total, 4096 - total, 0, top - round(draw.random(), 3), exponent)
        for name, value in zip(lists, (*row, -25 - lowest - 4, 15 - top - 4), strict=True):
            lists[name].append(value)
    nonzero = sum(lists["nonzero"])
    return {
        "lost": sum(lists["flushed"]) / max(1, nonzero),
        "method": "extrapolated",
        "methods": "".join("c" if KINDS[i % 4] == "cast" else "e" for i in range(rows)),
        "negligible": [rows - 1],
        **lists,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    for option, default in (("steps", 300), ("rows", 12), ("measure-every", 10), ("seed", 0)):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--octaves-every", type=int, default=50)
    parser.add_argument("--layerwise", action="store_true")
    given = vars(parser.parse_args())
    print(write_recording(given.pop("file"), **given))
