"""The second table of a task, closed until it is wanted: what happened on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from summary import TRUTH, Cell, Found

TOLD = (
    "Values at {at} in turn, one where all are alike. *Steps to target*: the share of all steps "
    "after which the training loss is what float32's is at three quarters of its own; *skipped* "
    "steps; *lost*: of one more step, the elements of weight matrices' gradients, and of the "
    "gradients that arrive at layers, which are not zero in float32 and zero here; *scales* in use "
    "at the end. Means over seeds."
)


def details(found: Found, strategies: Sequence[str]) -> str:
    """Markdown; columns of which the results know nothing are left out."""
    values = sorted(found.cells[TRUTH])
    told = {
        strategy: [_texts(found, strategy, value) for value in values]
        for strategy in strategies
        if strategy in found.cells
    }
    known = [c for c in COLUMNS if any(texts[c] for row in told.values() for texts in row)]
    rows = ["| | " + " | ".join(known) + " |", "|---" * (len(known) + 1) + "|"]
    for strategy, row in told.items():
        cells = (_joined([texts[column] for texts in row]) for column in known)
        rows.append(f"| {strategy} | " + " | ".join(cells) + " |")
    at = " · ".join(f"{value:g}" for value in values)
    head = "<details markdown><summary>On the way</summary>"
    return "\n\n".join([head, TOLD.format(at=at), "\n".join(rows), "</details>"])


def _texts(found: Found, strategy: str, value: float) -> dict[str, str]:
    cell = found.cells[strategy].get(value)
    return {name: "" if cell is None else tell(cell) for name, tell in COLUMNS.items()}


def _joined(texts: Sequence[str]) -> str:
    if len(set(texts)) == 1:
        return texts[0]
    return " · ".join(text or "–" for text in texts)


def _count(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.0f}"


def _percent(value: float) -> str:
    if math.isinf(value):
        return "never"
    return "" if math.isnan(value) else f"{100 * value:.0f} %"


COLUMNS: dict[str, Callable[[Cell], str]] = {
    "steps to target": lambda cell: _percent(cell.target),
    "skipped": lambda cell: _count(cell.skipped),
    "lost, weights": lambda cell: _percent(cell.lost_weights),
    "lost, inputs": lambda cell: _percent(cell.lost_inputs),
    "scales": lambda cell: _count(cell.scales),
}
