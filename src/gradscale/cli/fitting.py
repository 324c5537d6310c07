"""The roomiest of several tables that a screen has room for."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.table import Table

# Wider than any table, and printing nowhere.
_RULER = Console(width=1000, file=io.StringIO())


def fitting(tables: Iterable[Table], width: int) -> Table:
    """The first of `tables` that is no wider than `width`; the last one if none is.

    Args:
        tables: at least one, the roomiest first.
        width: of the screen, in columns.

    Example:
        >>> wide, narrow = (Table(title) for title in ("a long heading", "short"))
        >>> fitting([wide, narrow], 12) is narrow
        True
    """
    table: Table | None = None
    # Asked of the table itself: how wide it gets is rich's matter.
    for table in tables:
        if _RULER.measure(table).maximum <= width:
            break
    if table is None:
        raise ValueError("`fitting([], width)` needs at least one table.")
    return table


def fewer(columns: tuple[str, ...], expendable: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """All of `columns`, then without those that a narrow screen can do without, one by one.

    Example:
        >>> list(fewer(("scale", "last", "lost"), ("last", "scale")))
        [('scale', 'last', 'lost'), ('scale', 'lost'), ('lost',)]
    """
    for count in range(len(expendable) + 1):
        yield tuple(name for name in columns if name not in expendable[:count])
