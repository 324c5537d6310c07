"""How far the best single scale moves while a network trains: is one that was found worth keeping?

Run it as ``python experiments/scale_drift.py`` from the repository root (a few minutes). Along a
float32 run, every few steps, each exponent is tried at the same weights and batch: the mean cosine
of the layers' weight gradients with the true ones. *Kept* is what the exponent that was best at the
first step gives later, *followed* what the best of each moment gives.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch

from layerwise_table import RESULTS, float32_run, sweep, versions
from layerwise_tasks import TASKS

EXPONENTS = range(0, 31)


def drift(name: str, steps: int, every: int, format: str) -> list[dict[str, Any]]:
    """For each moment the best exponent, its cosine and the one kept since the first moment."""
    rows: list[dict[str, Any]] = []
    for step, model, batch in float32_run(TASKS[name], steps):
        if step % every and step != steps - 1:
            continue
        found = sweep(TASKS[name], model, batch, format, EXPONENTS)
        finite = {k: cosine for k, cosine in found.items() if not math.isnan(cosine)}
        best = max(finite, key=lambda k: finite[k])
        first = rows[0]["best"] if rows else best
        kept = finite.get(first, 0.0)
        rows.append({"step": step, "best": best, "followed": finite[best], "kept": kept})
        print(name, rows[-1], flush=True)
    return rows


def markdown(result: dict[str, Any]) -> str:
    lines = [
        "# How the best single scale moves",
        "",
        f"Gradients in {result['format']}; {result['date']}, torch {result['torch']}. Cosine: mean "
        "over layers, of the weight gradient with the true one. "
        "Command: `python experiments/scale_drift.py`.",
    ]
    for name, rows in result["tasks"].items():
        exponents = [row["best"] for row in rows]
        last = rows[-1]["step"] + 1
        lines += [
            "", f"## {name}", "",
            f"The best exponent moves by {max(exponents) - min(exponents)} in {last} steps; the "
            f"first kept costs at worst {max(r['followed'] - r['kept'] for r in rows):.4f} of "
            "cosine.", "",
            "| step | best scale | cosine there | cosine at the first one |", "|--:|--:|--:|--:|",
        ]  # fmt: skip
        lines += [
            f"| {row['step']} | 2^{row['best']} | {row['followed']:.4f} | {row['kept']:.4f} |"
            for row in rows
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=["pre-norm transformer", "ResNet"])
    parser.add_argument("--format", default="e5m2")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tasks = {n: drift(n, options.steps, options.every, options.format) for n in options.tasks}
    result = {"format": options.format, **versions(), "tasks": tasks}
    stem = options.out / "scale_drift"
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    stem.with_suffix(".md").write_text(markdown(result))


if __name__ == "__main__":
    main()
