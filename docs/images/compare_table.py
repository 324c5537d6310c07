"""Prints the table of README.md from a folder that `gradscale compare` wrote.

gradscale compare --out runs/readme && python docs/images/compare_table.py runs/readme
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

NAMES = {"none": "no scaling", "torch": "`torch.amp.GradScaler`"}


def spread(value: dict[str, float], percent: bool = False) -> str:
    """Mean and standard deviation over the seeds."""
    if percent:
        return f"{100 * value['mean']:.1f} ± {100 * value['sd']:.1f} %"
    return f"{value['mean']:.3f} ± {value['sd']:.3f}"


def percent(share: float) -> str:
    """A share with two significant places, which would be noise far below a thousandth."""
    return "< 0.001 %" if 0 < share < 1e-5 else f"{100 * share:.2g} %"


def row(entry: dict[str, Any]) -> str:
    """One line of the table."""
    wide = entry["precision"] == "fp32"
    name = "float32" if wide else f"fp16, {NAMES.get(entry['scaling'], entry['scaling'])}"
    lost = "" if wide else percent(entry["lost_share"]["mean"])
    octaves = sorted({round(math.log2(scale)) for scale in entry["final_scales"]})
    scale = "" if entry["scaling"] == "none" else " … ".join(f"2^{k}" for k in octaves)
    skipped = "" if entry["scaling"] == "none" else str(sum(entry["skipped"].values()))
    cells = (name, spread(entry["loss"]), spread(entry["metric"], True), lost, skipped, scale)
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Read, print."""
    summary = json.loads((Path(sys.argv[1]) / "summary.json").read_text())
    for divisor in summary["comparison"]["loss_divisors"]:
        title = "ordinary loss" if divisor == 1 else f"loss divided by {divisor:g}"
        print(f"| **{title}** | test loss | accuracy | gradients lost | steps skipped | scale |")
        print("|---|---|---|---|---|---|")
        for entry in summary["rows"]:
            if entry["loss_divisor"] == divisor:
                print(row(entry))
        print()


if __name__ == "__main__":
    main()
