"""Writes the first table of README.md from two comparisons, and keeps their summaries beside it.

gradscale compare digits --loss-divisor 1 --policy … --out runs/readme/digits
gradscale compare towers --policy … --out runs/readme/towers
python docs/images/compare_table.py runs/readme

with the policies of `make demo`. Without a folder the table is made from the summaries that are
kept, ``docs/images/compare-*.json``.
"""

from __future__ import annotations

import json
import math
import re
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
TABLE = re.compile(r"(<!-- first table: begin.*?-->\n).*?(<!-- first table: end -->)", re.DOTALL)
NAMES = {
    "none": "no scaling",
    "torch": "`torch.amp.GradScaler`",
    "layerwise": "**`layerwise=True`**",
}
RECIPES = ("digits", "towers")
LINES = ("fp32", "none", "torch", "static", "dynamic", "guarded", "lognormal", "layerwise")
Rows = dict[str, dict[str, Any]]


def rows(name: str) -> Rows:
    """A comparison's rows by their strategy, float32 as ``fp32``."""
    summary = json.loads((HERE / f"compare-{name}.json").read_text())
    return {row["policy"] if row["format"] != "fp32" else "fp32": row for row in summary["rows"]}


def keep(folder: Path, name: str) -> None:
    """Copies a summary, with where and when it was measured."""
    summary = json.loads((folder / name / "summary.json").read_text())
    measured = {"torch": torch.__version__, "date": date.today().isoformat(), "device": "CPU"}
    text = json.dumps({"measured": measured, **summary}, indent=1)
    (HERE / f"compare-{name}.json").write_text(text + "\n")


def scales(row: dict[str, Any]) -> str:
    """The scales in use at the end of each seed."""
    octaves = sorted({round(math.log2(scale)) for scale in row["final_scales"]})
    shown = octaves if len(octaves) < 3 else [octaves[0], octaves[-1]]
    return " … ".join(f"2^{k}" for k in shown)


def line(strategy: str, ordinary: Rows, units: Rows) -> str:
    """One line of the table."""
    one, other = ordinary[strategy], units[strategy]
    name = "float32" if strategy == "fp32" else f"fp16, {NAMES.get(strategy, strategy)}"
    accuracy = f"{100 * one['metric']['mean']:.1f} ± {100 * one['metric']['sd']:.1f} %"
    explained = f"{other['metric']['mean']:.2f} ± {other['metric']['sd']:.2f}"
    scaled = strategy not in ("fp32", "none")
    cells = (
        name,
        accuracy,
        explained,
        "" if strategy == "fp32" else f"{100 * other['lost_share']['mean']:.2g} %",
        scales(other) if scaled else "",
    )
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """All of it."""
    ordinary, units = rows("digits"), rows("towers")
    lines = [
        "| | an ordinary network: accuracy | two losses in different units: R² of the small one "
        "| gradients lost there | scale there |",
        "|---|---|---|---|---|",
        *(line(strategy, ordinary, units) for strategy in LINES),
    ]
    return "\n".join(lines)


def main() -> None:
    """Keep, write."""
    for name in RECIPES if len(sys.argv) > 1 else ():
        keep(Path(sys.argv[1]), name)
    readme = README.read_text()
    if not TABLE.search(readme):
        raise SystemExit("README.md has no marks `<!-- first table: begin … -->` … `end`.")
    README.write_text(TABLE.sub(lambda marks: f"{marks[1]}\n{table()}\n\n{marks[2]}", readme))


if __name__ == "__main__":
    main()
