"""A report as text of at most 100 columns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from gradscale.metrics.lost_count import count_lost, lost_between, may_lose
from gradscale.watching.rows import Row

WIDTH = 100
_HOW = {"counted": "counted", "reference": "ref.", "probe": "probe", "extrapolated": "extrap."}
_LEGEND = (
    "lost: not zero before it was rounded to the format, zero after. zero: truly zero. subn.: kept "
    "with\nfewer bits. room: octaves to the largest number. window: exponents that suit, 2^has is "
    "the one it\nhas, 2^needs the nearest that suits. how: counted before rounding, from a "
    "reference pass or a\nprobe, or extrapolated from what is left."
)
_NUMBERS = ("largest", "typical", "zero", "lost", "subn.", "room", "window", "has", "needs", "how")
# With a space before each they take 74 of the columns: names have 26, or 19 beside a format.
_WIDTHS = (8, 8, 6, 6, 6, 5, 9, 4, 5, 7)


def table(rows: Sequence[Row], most: int, steps: Sequence[int], notes: Iterable[str]) -> str:
    """The worst rows, and what they are made of.

    Args:
        rows: worst first.
        most: how many of them to show.
        steps: the numbers of those that measured them.
        notes: what else to know of them.
    """
    if not rows:
        return (
            "Nothing has been measured: no backward pass has reached a parameter of the model "
            "while it was watched, inside `with gradscale.watch(model) as watch:`."
        )
    every = [row for row in rows if not row.negligible]
    # Beside narrower ones, what is in float32 loses nothing that a scale could save.
    shown = [row for row in every if row.format != "fp32"] or every
    worst = shown[:most]
    formats = {row.format for row in worst}
    header = _line("name", "format", _NUMBERS, len(formats) > 1)
    lines = [_summary(rows, steps), *notes, "", header]
    lines += [_line(row.name, row.format, _cells(row), len(formats) > 1) for row in worst]
    if left := len(shown) - len(worst):
        lines.append(f"… and {left} more rows, where less is lost")
    lines += [*_negligible(rows), "", _LEGEND]
    return "\n".join(lines)


def _summary(every: Sequence[Row], steps: Sequence[int]) -> str:
    rows = [row for row in every if may_lose(row)]
    total = sum(row.nonzero for row in rows)
    formats = " and ".join(sorted({row.format for row in rows})) or "float32"
    methods = " and ".join(sorted({row.method for row in rows})) or "counted"
    first, last, count = steps[0], steps[-1], len(steps)
    when = f"Step {first}." if count == 1 else f"Steps {first} to {last}, {count} of them measured."
    lost = share_cell(count_lost(rows).lost_share or 0.0)
    what = f"{formats} loses {lost} of {total:,} non-zero gradient elements ({methods})."
    return "\n".join([what, *_between(rows), when])


def _between(rows: Sequence[Row]) -> list[str]:
    """How far the estimate may be off; nothing where that is no figure of the table's."""
    least, most = map(share_cell, lost_between(rows))
    if least == most:
        return []
    return [f"At least {least} if all zeros are true, at most {most} if none is."]


def _negligible(rows: Sequence[Row]) -> list[str]:
    names = [row.name for row in rows if row.negligible]
    if not names:
        return []
    shown = ", ".join(_short(name, 60) for name in names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ["Zero up to rounding, so nothing is lost there:", f"  {shown}{more}"[:WIDTH]]


def _line(name: str, format: str, cells: tuple[str, ...], with_format: bool) -> str:
    right = " ".join(cell.rjust(width) for cell, width in zip(cells, _WIDTHS, strict=True))
    if with_format:
        right = f"{format[:6].rjust(6)} {right}"
    room = WIDTH - len(right) - 1
    return f"{_short(name, room).ljust(room)} {right}"


def _cells(row: Row) -> tuple[str, ...]:
    window = f"{row.window.lo}…{row.window.hi}"
    return (
        "inf/nan" if row.counts.nonfinite else power(row.counts.amax),
        power(row.typical),
        share_cell(row.zero_share),
        share_cell(row.lost_share),
        share_cell(row.subnormal_share),
        "" if math.isinf(row.headroom) else f"{row.headroom:.0f}",
        "any" if row.window.free else window,
        str(row.exponent) if row.kind != "activation" else "",
        str(row.needs) if row.kind != "activation" else "",
        _HOW[row.method],
    )


def _short(name: str, room: int) -> str:
    """A name cut at its front, where layers look alike."""
    return name if len(name) <= room else "…" + name[len(name) - room + 1 :]


def power(value: float) -> str:
    """A magnitude as a power of two.

    Example:
        >>> power(0.375), power(0.0)
        ('2^-1.4', '0')
    """
    return f"2^{math.log2(value):.1f}" if value > 0 else "0"


def share_cell(value: float) -> str:
    """A share in percent, in at most 6 characters.

    Example:
        >>> [share_cell(share) for share in (0.0, 1.0, 0.1234, 0.00123, 1e-7)]
        ['0%', '100%', '12.3%', '0.12%', '<0.01%']
    """
    percent = 100 * value
    if percent == 0 or percent == 100:
        return f"{percent:.0f}%"
    if percent < 0.01:
        return "<0.01%"
    if percent > 99.9:
        return ">99.9%"
    return f"{percent:.1f}%" if percent >= 1 else f"{percent:.2f}%"
