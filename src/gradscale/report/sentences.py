"""A run in a few lines of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradscale.percent import percent
from gradscale.report.run import Run
from gradscale.report.summary import summary_of


def sentences_of(run: Run, *, named: bool = False) -> list[str]:
    """What a run comes down to, and what its recording lacks.

    Args:
        run: the run.
        named: whether to begin with its name, as beside others.
    """
    it = summary_of(run)
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in it["reasons"].items())
    skipped = f"{it['skipped']:,} skipped" + (f" ({reasons})" if reasons else "")
    parts = [f"{it['steps']:,} steps", skipped]
    if it["dropped"] is not None:
        batches, steps = it["dropped"]["micro_batches"], it["dropped"]["steps"]
        parts.append(f"{batches:,} micro-batches dropped in {steps:,} steps")
    if it["log2_scale"] is not None:
        low, high = (f"2^{it['log2_scale'][name]:g}" for name in ("lowest", "highest"))
        parts.append(f"scale {low if low == high else f'{low} to {high}'}")
    if it["lost"] is not None and it["lost"]["share"] is not None:
        parts.append(f"{percent(it['lost']['share'])} lost ({_how(it['lost'])})")
    line = ", ".join(parts) + "."
    # Beside others a line is enough: the page has the rest.
    if named:
        return [f"{run.name}: {line}"]
    lines = [line]
    if it["worst"]:
        lines.append(f"Most in {it['worst'][0]['row']}: {percent(it['worst'][0]['share'])}.")
    return lines + it["missing"]


def _how(lost: Mapping[str, Any]) -> str:
    """How a share is known, and between which the truth lies."""
    least, most = map(percent, lost["between"] or (0.0, 0.0))
    if least == most:
        return str(lost["method"])
    return f"{lost['method']}: at least {least}, at most {most}"
