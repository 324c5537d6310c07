"""The tables of what was measured at real size, as a page and as a section of docs/results.md."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pairs import bracketed
from real.tasks import FULL
from real.ways import FLOAT32, WAYS
from where import in_words

ROOT = Path(__file__).parents[2]
NOT_RUN = "**Not run: no GPU so far.** The code is written and tested on toys on a CPU."
LAST = 10
"""Steps at the end of the course whose mean loss is shown."""
Row = dict[str, Any]


def page(rows: list[Row]) -> str:
    """A page of its own."""
    return f"# Training at real size\n\n{section(rows)}\n"


def section(rows: list[Row]) -> str:
    """What stands between the marks: a table a network, or that there is none."""
    if not rows:
        return NOT_RUN
    wheres = list(dict.fromkeys(in_words(row["where"]) for row in rows))
    parts = [f"*{'; '.join(wheres)}.*", LEGEND]
    for task in FULL:
        for compiled in (False, True):
            found = [row for row in rows if (row["task"], row["compiled"]) == (task.name, compiled)]
            if found:
                title = f"**{task.name}{', compiled' * compiled}**: {task.about}."
                parts += [title, table(found, task.unit, task.units)]
    return "\n\n".join(parts)


LEGEND = f"""\
*Time*: of a step, as a ratio to torch's scaler with the same optimizer: median of interleaved
rounds [quartiles]; its own row is the noise. *Peak*: the most memory alive in a step that this way
allocated, measuring steps included. *Skipped*: of the first steps. *Scales*: loss scales in use
after them, in brackets the multiplied edges. *Measuring*: time of a step that measures, the same
ratio; *share*: of a long run's time that measuring adds. *Host reads*: of a step that does not
measure. *Loss*: the mean of the last {LAST} of the first steps, and its difference to float32."""


def table(rows: list[Row], unit: str, units: int) -> str:
    """The rows of one network, fused optimizers first."""
    lines = [
        f"| | optimizer | {unit} / s | time | peak | skipped | scales | measuring | share | "
        "host reads | loss |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    order = [way.name for way in WAYS]
    base = next((row for row in rows if row["way"] == FLOAT32.name and row["fused"]), {})
    for row in sorted(rows, key=lambda row: (not row["fused"], order.index(row["way"]))):
        kernel = "fused" if row["fused"] else "foreach"
        cells = [row["way"], kernel, *_cells(row, base, units)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cells(row: Row, base: Row, units: int) -> list[str]:
    if "error" in row:
        return [f"failed: {row['error'].replace('|', '/')}", *[""] * 8]
    peak, scales, reads = row["peak"], row.get("scales"), row["host_reads"]
    return [
        f"{1e3 * units / row['ms']:,.0f}",
        bracketed(*row["ratio"]),
        "" if peak is None else f"{peak / 2**30:.2f} GiB",
        f"{row['skipped']} of {len(row['losses'])}",
        "" if scales is None else f"{scales} ({row['edges']})",
        bracketed(*row["measuring"]) if "measuring" in row else "",
        f"{share(row):.2%}" if "measuring" in row else "",
        "" if reads is None else str(reads),
        _loss(row, base),
    ]


def share(row: Row) -> float:
    """Of the time of many steps, what measuring every so many of them adds."""
    between, measuring = row["ratio"][1], row["measuring"][1]
    added = (measuring - between) / row["interval"]
    return added / (between + added)


def _loss(row: Row, base: Row) -> str:
    losses, others = row["losses"], base.get("losses", [])
    if not row["fused"]:
        return ""
    end = sum(losses[-LAST:]) / LAST
    if row is base or len(others) != len(losses):
        return f"{end:.4f}"
    return f"{end:.4f} ({end - sum(others[-LAST:]) / LAST:+.4f})"


def write_section(rows: list[Row]) -> None:
    """Puts it into docs/results.md."""
    sys.path.insert(0, str(ROOT / "experiments" / "edge"))
    from marks import with_generated

    path = ROOT / "docs" / "results.md"
    path.write_text(with_generated(path.read_text(), "real size", section(rows)))
