"""Which rows matter, and which of two is worse."""

from __future__ import annotations

from gradscale.watching.rows import Row


def badness(row: Row) -> tuple[bool | float, ...]:
    """What to sort by.

    Lost elements weigh by the root of their share: a share alone would put tiny tensors first, a
    number alone the largest ones, of which little is lost.
    """
    lost = row.flushed * row.lost_share**0.5
    distance = abs(row.needs - row.exponent)
    broken = not (row.counts.nonfinite > 0), not row.overflows
    return row.negligible, *broken, -lost, row.format == "fp32", -distance
