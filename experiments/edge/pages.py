"""Figures and tables of `docs/results.md` from the results of `edge.py`.

    python experiments/edge/pages.py

Replaces what stands in the page between the marks of each task that has results, and its figure in
``docs/images``.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import mismatch
from claims import Result
from claims import table as claims
from details import details
from edge import RESULTS
from figure import draw
from marks import with_generated
from strategy import LINES
from summary import TOLERANCE, TRUTH, Cell, Found, is_near, read
from task import Task
from tasks import TASKS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results.md"
SHOWN = [line.label for line in LINES]


def table(found: Found) -> str:
    """A row a strategy, a column a value of the knob."""
    values = sorted(found.cells[TRUTH])
    lines = [
        "| | " + " | ".join(f"{value:g}" for value in values) + " | step | maxima |",
        "|---" * (len(values) + 3) + "|",
    ]
    for strategy in (label for label in SHOWN if label in found.cells):
        cells = found.cells[strategy]
        shown = [_shown(cells[v], strategy) if v in cells else "" for v in values]
        lines.append(f"| {strategy} | " + " | ".join([*shown, *_costs(found, strategy)]) + " |")
    return "\n".join(lines)


def _costs(found: Found, strategy: str) -> tuple[str, str]:
    """Processor time of a step over float32's; tensors read for their maximum, a step."""
    cells, base = found.cells[strategy], found.cells[TRUTH]
    timed = [v for v in cells if math.isfinite(cells[v].cpu_ms + base[v].cpu_ms)]
    if not timed:
        return "", ""
    ratio = sum(cells[v].cpu_ms for v in timed) / sum(base[v].cpu_ms for v in timed)
    maxima = max(cells[v].reductions for v in timed)
    return f"{ratio:.1f}", f"{maxima:.1f}" if maxima else ""


def _shown(cell: Cell, strategy: str) -> str:
    if strategy == TRUTH or math.isinf(cell.interval):
        return f"{cell.score:.3f}"
    return f"{cell.score:.3f} ({cell.difference:+.3f} ± {cell.interval:.3f})"


def constants(task: Task, found: Found) -> str:
    """Which constants work, at each value where they were tried."""
    by_value: dict[float, list[int]] = {}
    tried: dict[float, list[int]] = {}
    for strategy, cells in found.cells.items():
        exponent = re.fullmatch(r"fp16 static 2\^(-?\d+)", strategy)
        for value, cell in cells.items() if exponent else ():
            assert exponent is not None
            tried.setdefault(value, []).append(int(exponent[1]))
            if is_near(cell.score, found.cells[TRUTH][value].scores[0], task.chance):
                by_value.setdefault(value, []).append(int(exponent[1]))
    lines: list[str] = []
    for value, exponents in sorted(tried.items()):
        works = sorted(by_value.get(value, []))
        said = f"2^{works[0]} to 2^{works[-1]}" if works else "none"
        lines.append(
            f"Constants that learn {1 - TOLERANCE:.0%} of what float32 does, in fp16 at {value:g}: "
            f"{said} (tried: every fourth from 2^{min(exponents)} to 2^{max(exponents)}, one seed)."
        )
    return "\n\n".join(lines)


def section(task: Task, found: Found) -> str:
    """What stands between the marks of a task."""
    counts = {
        len(cell.scores)
        for label, cells in found.cells.items()
        for cell in cells.values()
        if label in SHOWN
    }
    least, count = min(counts), max(counts)
    seeds = f"{count} seed{'s' if count > 1 else ''}"
    if least < count:
        seeds = f"{least} to {count} seeds, one where no interval is given"
    where = ", ".join(f"{key} {value}" for key, value in found.machine.items())
    parts = [
        f"*{task.about}; {task.steps} steps, {seeds}. {where}.*",
        f"![{task.score} along {task.knob}](images/edge-{task.name}.svg)",
        f"{task.score[0].upper()}{task.score[1:]} by {task.knob}"
        + ("; in brackets the paired difference to float32 with its 95 % interval" * (count > 1))
        + "; *step*: processor time of a step, float32 = 1: most of it is emulation; *maxima*: how "
        "many tensors are read for their maximum to choose a scale of their own, a step.",
        table(found),
        constants(task, found),
        details(found, SHOWN),
    ]
    return "\n\n".join(part for part in parts if part)


def main() -> None:
    """Draw, write."""
    page = PAGE.read_text()
    results: list[Result] = []
    for name, task in TASKS.items():
        path = RESULTS / f"{name}.jsonl"
        if path.exists():
            found = read(path, worst=task.chance)
            results.append((task, found))
            draw(task, found, ROOT / "docs" / "images" / f"edge-{name}.svg")
            page = with_generated(page, f"edge {name}", section(task, found))
    if mismatch.RESULT.exists():
        page = with_generated(page, "mismatch", mismatch.table())
    PAGE.write_text(with_generated(page, "claims", claims(results)))


if __name__ == "__main__":
    main()
