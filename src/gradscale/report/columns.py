"""The heat map's columns: measured steps, merged as they come in until few enough are left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gradscale.report.seen import Floats, SeenArrays

LIMIT = 1000  # more than a screen has places for


@dataclass
class Column:
    """Consecutive measured steps as one. Arrays have one entry a row of the recording.

    Attributes:
        first: the earliest step.
        last: the latest step.
        flushed: elements lost.
        nonzero: elements that were truly not zero.
        zero: elements that were zero.
        nonfinite: elements that were infinite or NaN.
        worst: the largest lost share of a single step; NaN where a row was not measured.
        amax: log2 of the largest magnitude; -inf where all was zero, NaN where not measured.
        off: by how many octaves the exponent misses the window, at the last step that was measured:
            positive if it is too low; NaN where not measured.
    """

    first: int
    last: int
    flushed: Floats
    nonzero: Floats
    zero: Floats
    nonfinite: Floats
    worst: Floats
    amax: Floats
    off: Floats

    @staticmethod
    def of(step: int, seen: SeenArrays, rows: int) -> Column:
        """One measured step."""

        def spread(values: Floats, empty: float) -> Floats:
            filled = np.full(rows, empty)
            filled[seen.id] = values
            return filled

        worst = seen.flushed / np.maximum(1, seen.nonzero)
        off = np.clip(seen.exponent, seen.lo, seen.hi) - seen.exponent
        sums = (seen.flushed, seen.nonzero, seen.zero, seen.nonfinite)
        return Column(
            step,
            step,
            *(spread(values, 0.0) for values in sums),
            *(spread(values, np.nan) for values in (worst, seen.amax, off)),
        )

    def widened(self, rows: int) -> Column:
        """The same with room for rows that turned up later."""
        more = rows - len(self.flushed)
        if more <= 0:
            return self
        empty = {"worst": np.nan, "amax": np.nan, "off": np.nan}
        arrays = {
            name: np.concatenate([values, np.full(more, empty.get(name, 0.0))])
            for name, values in vars(self).items()
            if isinstance(values, np.ndarray)
        }
        return Column(self.first, self.last, **arrays)

    def merged(self, later: Column) -> Column:
        """This and a later one as one."""
        rows = len(later.flushed)
        early = self.widened(rows)
        return Column(
            early.first,
            later.last,
            early.flushed + later.flushed,
            early.nonzero + later.nonzero,
            early.zero + later.zero,
            early.nonfinite + later.nonfinite,
            # `fmax` passes over NaN: not measured is not better.
            np.fmax(early.worst, later.worst),
            np.fmax(early.amax, later.amax),
            np.where(np.isnan(later.off), early.off, later.off),
        )


class Columns:
    """At most `LIMIT` columns, each of equally many measured steps (the last may have fewer).

    Never more than twice that many are kept, so that memory does not grow with the run.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.steps_each = 1
        self._columns: list[Column] = []
        self._open = 0

    def add(self, step: int, seen: SeenArrays, rows: int) -> None:
        """Count one measured step; `rows` are known by now."""
        column = Column.of(step, seen, rows)
        if self._open:
            self._columns[-1] = self._columns[-1].merged(column)
        else:
            self._columns.append(column)
        # The column under way takes steps until it has as many as the others.
        self._open = (self._open + 1) % self.steps_each
        if len(self._columns) == 2 * self.limit and not self._open:
            self._columns = list(_pairs(self._columns))
            self.steps_each *= 2

    def finish(self, rows: int) -> list[Column]:
        """The columns, all of `rows` rows."""
        columns = self._columns
        while len(columns) > self.limit:
            columns = list(_pairs(columns))
        return [column.widened(rows) for column in columns]


def _pairs(columns: list[Column]) -> Iterator[Column]:
    for index in range(0, len(columns), 2):
        pair = columns[index : index + 2]
        yield pair[0].merged(pair[1]) if len(pair) == 2 else pair[0]
