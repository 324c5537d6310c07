"""What of an 8-bit backward pass is lost to range, and what to rounding?

Run it as ``python experiments/mantissa_limit.py`` from the repository root (some minutes). At three
moments of a float32 run, at the same weights and batch, a layer's weight gradient is compared with
the true one: under torch's first scale, 2^16; under a plan of `Windows`; and in a format of the
same mantissa with eight exponent bits, in which nothing is flushed and nothing overflows. No choice
of scales can do better than the last, except by chance.
"""

from __future__ import annotations

import argparse
import json
import statistics
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

import gradscale
from gradscale.emulation import emulate
from gradscale.formats import FloatFormat
from layerwise_table import RESULTS, autocasting, versions
from layerwise_tasks import TASKS, Task
from layerwise_truth import cosines, true_pass, weight_gradients

NAMES = ("post-norm transformer", "deep, no normalisation", "recurrence")
FORMATS = ("e5m2", "e4m3")


def gradients(
    task: Task, model: nn.Module, batch: Any, backward: FloatFormat | str, scaler: Any
) -> dict[str, Tensor]:
    """The weight gradients of one pass; a wide format is read from float32 tensors."""
    model.zero_grad()
    wide = isinstance(backward, FloatFormat)
    stored: AbstractContextManager[object] = nullcontext() if wide else autocasting("fp16")
    between = "fp32" if wide else None
    with emulate(forward="fp16", backward=backward, between=between):
        with stored:
            loss = task.loss(model, batch)
        scaler.scale(loss).backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler.unscale_(optimizer)
    found = weight_gradients(model)
    scaler.step(optimizer)
    scaler.update()
    return found


def moment(task: Task, model: nn.Module, batch: Any, format: str) -> dict[str, float]:
    """The mean cosines of the three ways."""
    _, true = true_pass(model, lambda m: task.loss(m, batch))
    wide = FloatFormat(8, FloatFormat.of(format).mantissa_bits)
    planned = gradscale.GradScaler("cpu", layerwise=True)
    for _ in range(3):  # a plan whose first guess overflowed has come down by then
        windows = gradients(task, model, batch, format, planned)
    return {
        name: statistics.fmean(cosines(true, found))
        for name, found in {
            "torch": gradients(task, model, batch, format, torch.amp.GradScaler("cpu")),
            "Windows": windows,
            "wide": gradients(task, model, batch, wide, torch.amp.GradScaler("cpu")),
        }.items()
    }


def moments(name: str, seeds: int) -> list[dict[str, Any]]:
    """One row for each format, seed and moment."""
    task, rows = TASKS[name], []
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = task.model()
        optimizer = task.optimizer(model)
        for step in range(task.steps):
            batch = task.batch(seed, step)
            if step in (task.steps // 8, task.steps // 2, task.steps - 2):
                for format in FORMATS:
                    row = {"task": name, "format": format, "seed": seed, "step": step}
                    rows.append(row | moment(task, model, batch, format))
                    print(rows[-1], flush=True)
            optimizer.zero_grad()
            task.loss(model, batch).backward()
            optimizer.step()
    return rows


def markdown(result: dict[str, Any]) -> str:
    lines = [
        "# Range and rounding",
        "",
        f"{result['date']}, torch {result['torch']}, {result['seeds']} seeds, three moments each. "
        "Cosine of a layer's weight gradient with the true one, mean over layers: median over "
        "seeds and moments, least and largest in brackets. *No limit of range*: a format of the "
        "same mantissa with eight exponent bits, in float32 tensors. *Apart*: by how much "
        "`Windows` is below it at most. Command: `python experiments/mantissa_limit.py`.",
        "",
        "| task | format | torch's first scale | `Windows` | no limit of range | apart |",
        "|---|---|--:|--:|--:|--:|",
    ]  # fmt: skip
    for name in NAMES:
        for format in FORMATS:
            rows = [r for r in result["rows"] if (r["task"], r["format"]) == (name, format)]
            cells = []
            for way in ("torch", "Windows", "wide"):
                values = [row[way] for row in rows]
                cells.append(
                    f"{statistics.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]"
                )
            apart = max(row["wide"] - row["Windows"] for row in rows)
            lines.append(f"| {name} | {format} | {' | '.join(cells)} | {apart:.3f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name in NAMES for row in moments(name, given.seeds)]
    result = {**versions(), "seeds": given.seeds, "rows": rows}
    path = RESULTS / "mantissa_limit.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(result))


if __name__ == "__main__":
    main()
