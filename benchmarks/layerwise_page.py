"""Writes what `docs/layerwise.md` says of costs, from the figures of `benchmarks/layerwise.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from where import RESULTS, in_words

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "layerwise.md"


def cost_section(data: dict[str, Any]) -> str:
    """A table of step times, and what walking, counting and planning takes by the nodes."""
    rounds = data["rows"][0]["rounds"]
    lines = [
        f"*Medians of {rounds} rounds. {in_words(data['where'])}.*",
        "",
        "| model | noise (torch against itself) | one scale | a plan (multiplied edges) | "
        "a measuring step | amortised, one scale, default calendar |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in data["rows"]:
        again, uniform, planned, measuring = (
            f"{row[arm][1]:.3f}" for arm in ("torch again", "uniform", "planned", "measuring")
        )
        lines.append(
            f"| {row['model']} | {again} | {uniform} | {planned} ({row['hooked_edges']:,}) | "
            f"{measuring} | {row['amortised']:.3f} |"
        )
    lines += [
        "",
        "| milliseconds, by nodes of two elements | bare backward pass | a pass that counts | "
        "first walk | walk of a step with a plan | a new plan |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for plan in data["planning"]:
        keys = ("backward", "measured backward", "first walk", "walk", "plan")
        lines.append(f"| {plan['nodes']:,} | " + " | ".join(f"{plan[k]:.1f}" for k in keys) + " |")
    return "\n".join(lines)


def main() -> None:
    """Puts it between the marks of the page."""
    sys.path.insert(0, str(ROOT / "experiments" / "edge"))
    from marks import with_generated

    data = json.loads((RESULTS / "layerwise_cpu.json").read_text())
    PAGE.write_text(with_generated(PAGE.read_text(), "layerwise cost", cost_section(data)))


if __name__ == "__main__":
    main()
