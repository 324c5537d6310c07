"""How near the estimates of what was lost come to the truth, on the six tasks at several scales.

    python experiments/lost_three_ways.py            writes results/lost_three_ways.{json,md}
    python experiments/lost_three_ways.py --page     writes some of it into docs/advice.md

Each task trains for a few steps in float32. Then one batch runs in emulated float16, and with
eight-bit gradients, at several loss scales; its lost share is told by a float32 reference, by a
probe at a higher scale, and from the exponent histogram alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from gradscale.emulation.computing import computing_in
from gradscale.truth import measure_lost
from layerwise_tasks import TASKS, Task

RESULTS = Path(__file__).parent / "results"
METHODS = ("reference", "probe", "extrapolated")
PAGE = Path(__file__).parents[1] / "docs" / "advice.md"
BEGIN, END = "<!-- three ways -->", "<!-- end of three ways -->"
ON_PAGE = (("fp16", -8), ("fp16", 0), ("fp16", 16), ("e5m2", 8))
FORMATS = {"fp16": (-8, 0, 8, 16), "e5m2": (0, 8, 16)}


def trained(task: Task, seed: int, steps: int) -> nn.Module:
    torch.manual_seed(seed)
    model = task.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=task.lr)
    for step in range(steps):
        optimizer.zero_grad()
        task.loss(model, task.batch(seed, step)).backward()
        optimizer.step()
    return model


def shares(task: Task, model: nn.Module, seed: int, format: str, log2_scale: int) -> dict:
    batch = task.batch(seed, 1000)

    def loss(subject: nn.Module) -> Tensor:
        return task.loss(subject, batch)

    with computing_in(format, "cpu", "on"):
        found = {
            method: measure_lost(model, loss, scale=2.0**log2_scale, format=format, method=method)
            for method in METHODS
        }
    return {method: lost.lost_share for method, lost in found.items()}


def table(rows: list[dict]) -> str:
    lines = [
        "| task | gradients | scale | truth | probe | extrapolated |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = [f"{100 * row[method]:.3f}%" for method in METHODS]
        scale = f"2<sup>{row['log2_scale']}</sup>"
        lines.append(f"| {row['task']} | {row['format']} | {scale} | {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(rows: list[dict]) -> list[str]:
    lines = []
    for method in METHODS[1:]:
        off = sorted(abs(row[method] - row["reference"]) for row in rows)
        above = max(row[method] - row["reference"] for row in rows)
        below = max(row["reference"] - row[method] for row in rows)
        lines.append(
            f"- {method}: off by {100 * off[len(off) // 2]:.3f} points in the median, by at most "
            f"{100 * off[-1]:.1f}; at most {100 * max(0.0, above):.3f} above and "
            f"{100 * max(0.0, below):.1f} below the truth."
        )
    return lines


def fill_page() -> None:
    """A selection of the committed results, between the two markers."""
    record = json.loads((RESULTS / "lost_three_ways.json").read_text())
    rows = [row for row in record["rows"] if (row["format"], row["log2_scale"]) in ON_PAGE]
    head, _, rest = PAGE.read_text().partition(BEGIN)
    tail = rest.partition(END)[2]
    filled = "\n".join([table(rows), "", f"From `{record['command']}`.", ""])
    lines = "\n".join(summary(record["rows"]))
    PAGE.write_text(f"{head}{BEGIN}\n{filled}\n{lines}\n{END}{tail}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args()
    if given.page:
        fill_page()
        return
    torch.set_num_threads(1)
    rows = []
    for name, task in TASKS.items():
        models = [trained(task, seed, given.steps) for seed in range(given.seeds)]
        for format, scales in FORMATS.items():
            for log2_scale in scales:
                each = [
                    shares(task, model, seed, format, log2_scale)
                    for seed, model in enumerate(models)
                ]
                means = {m: sum(one[m] for one in each) / len(each) for m in METHODS}
                rows.append({"task": name, "format": format, "log2_scale": log2_scale, **means})
                print(rows[-1], flush=True)
    command = f"python experiments/lost_three_ways.py --seeds {given.seeds} --steps {given.steps}"
    record = {"command": command, "torch": torch.__version__, "rows": rows}
    (RESULTS / "lost_three_ways.json").write_text(json.dumps(record, indent=1) + "\n")
    text = "\n".join([f"From `{command}`.", "", table(rows), "", *summary(rows)])
    (RESULTS / "lost_three_ways.md").write_text(f"# Lost shares, three ways\n\n{text}\n")


if __name__ == "__main__":
    main()
