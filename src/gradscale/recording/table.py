"""Rows by number: a name is written once, every later line has its id."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradscale.metrics.lost_count import count_lost, may_lose
from gradscale.recording.appending import Line
from gradscale.watching.rows import Row

Key = tuple[str, str, str]


class RowTable:
    """Gives ids to rows in the order in which they are first seen."""

    def __init__(self) -> None:
        self._ids: dict[Key, int] = {}

    def know(self, line: Line) -> None:
        """Takes over the rows of a line that was written before."""
        for row in line["rows"]:
            self._ids[row["name"], row["row_kind"], row["format"]] = row["id"]

    def id_of(self, row: Row) -> int:
        """The id of a row that has one."""
        return self._ids[_key(row)]

    def named(self) -> dict[str, list[int]]:
        """Ids by name: a module, its parameter and its cast may share one."""
        found: dict[str, list[int]] = {}
        for (name, _, _), number in self._ids.items():
            found.setdefault(name, []).append(number)
        return found

    def introduce(self, rows: Sequence[Row]) -> dict[str, object] | None:
        """The line that introduces those of `rows` that are new; None if none is."""
        fresh: list[dict[str, object]] = []
        for order, row in enumerate(rows):
            if _key(row) in self._ids:
                continue
            number = self._ids[_key(row)] = len(self._ids)
            # `row_kind`, because `kind` is that of the line.
            info = {"id": number, "name": row.name, "row_kind": row.kind, "format": row.format}
            fresh.append({**info, "numel": row.numel, "order": order})
        return {"kind": "rows", "rows": fresh} if fresh else None


def seen(rows: Sequence[Row], table: RowTable) -> dict[str, object]:
    """The lists of a measuring step, one place a row."""
    lost = count_lost(rows)
    # Their first letters differ, and a letter a row is short.
    letters = "".join(row.method[0] for row in rows)
    value: dict[str, object] = {
        "lost": None if lost.lost_share is None else nine_digits(lost.lost_share),
        "method": lost.method,
        "id": [table.id_of(row) for row in rows],
        "flushed": [row.flushed for row in rows],
        "nonzero": [row.nonzero for row in rows],
        "zero": [row.numel - row.nonzero - row.counts.nonfinite for row in rows],
        "nonfinite": [row.counts.nonfinite for row in rows],
        "amax": [_log2_up(row.counts.amax) for row in rows],
        "exponent": [row.exponent for row in rows],
        "lo": [row.window.lo for row in rows],
        "hi": [row.window.hi for row in rows],
    }
    # Only where rows differ: most steps have one method for all.
    if letters.strip(lost.method[0]):
        value["methods"] = letters
    # Only where it is not known either: equal bounds are `flushed` itself.
    counting = [row for row in rows if may_lose(row)]
    least, most = sum(row.least for row in counting), sum(row.most for row in counting)
    if least != most:
        value |= {"least": least, "most": most}
    negligible = [table.id_of(row) for row in rows if row.negligible]
    if negligible:
        value["negligible"] = negligible
    return value


def octave_lists(rows: Sequence[Row], table: RowTable) -> dict[str, list[int | list[int]]]:
    """The histograms of a measuring step, by row id; rows without a non-zero element have none."""
    return {
        str(table.id_of(row)): [row.counts.lowest, list(row.counts.octaves)]
        for row in rows
        if row.counts.octaves
    }


def plan_of(rows: Sequence[Row], table: RowTable, scale: float) -> dict[str, object]:
    """The groups of rows that share a loss scale, the largest group first."""
    groups: dict[int, list[int]] = {}
    for row in rows:
        # Activations are stored as they are, whatever the scale.
        if row.kind != "activation":
            groups.setdefault(row.exponent, []).append(table.id_of(row))
    # The lowest exponent first among equally large ones, so that equal plans are written alike.
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    return {
        "log2_scale": math.frexp(scale)[1] - 1,
        "groups": [{"exponent": exponent, "rows": ids} for exponent, ids in ordered],
    }


def first_nonfinite(rows: Sequence[Row]) -> dict[str, str | None] | None:
    """The first row, in the order of either pass, that held something infinite or NaN."""
    found = [row for row in rows if row.counts.nonfinite]
    backward = next((row.name for row in found if row.kind != "activation"), None)
    forward = next((row.name for row in found if row.kind == "activation"), None)
    return {"backward": backward, "forward": forward} if found else None


def nine_digits(value: float) -> float:
    """Nine digits: enough to give back the same float32.

    Example:
        >>> nine_digits(0.1 + 0.2)
        0.3
    """
    # Nine decimal digits tell any two float32 apart (IEEE 754: 1 + ceil(24 log10 2)).
    return float(f"{value:.9g}")


def _log2_up(amax: float) -> float | None:
    """Rounded up to three digits, so that nothing that overflows seems to fit."""
    return math.ceil(math.log2(amax) * 1000) / 1000 if 0 < amax < math.inf else None


def _key(row: Row) -> Key:
    return row.name, row.kind, row.format
