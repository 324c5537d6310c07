"""The heat map's columns: measured steps, merged as they come in until few enough are left."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from gradscale.recording import Seen
from gradscale.report.arrays import Floats

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
    def of(step: int, seen: Seen, rows: int) -> Column:
        """One measured step."""

        def spread(values: ArrayLike, empty: float) -> Floats:
            filled = np.full(rows, empty)
            filled[list(seen.id)] = values
            return filled

        exponent = np.array(seen.exponent, dtype=np.float64)
        # By step and before merging: a mean hides the one step that lost all.
        worst = np.array(seen.flushed, dtype=np.float64) / np.maximum(1, seen.nonzero)
        amax = [-math.inf if value is None else value for value in seen.amax]
        off = np.clip(exponent, seen.lo, seen.hi) - exponent
        sums = (seen.flushed, seen.nonzero, seen.zero, seen.nonfinite)
        return Column(
            step,
            step,
            *(spread(values, 0.0) for values in sums),
            *(spread(values, np.nan) for values in (worst, amax, off)),
        )

    def merged(self, later: Column) -> Column:
        """This and a later one as one."""
        return Column(
            self.first,
            later.last,
            self.flushed + later.flushed,
            self.nonzero + later.nonzero,
            self.zero + later.zero,
            self.nonfinite + later.nonfinite,
            # `fmax` passes over NaN: not measured is not better.
            np.fmax(self.worst, later.worst),
            np.fmax(self.amax, later.amax),
            np.where(np.isnan(later.off), self.off, later.off),
        )


class Columns:
    """At most `limit` columns, each of equally many measured steps (the last may have fewer).

    Never more than twice as many are kept, so that memory does not grow with the run.

    Args:
        rows: of the recording.
        limit: of columns.
    """

    def __init__(self, rows: int, limit: int = LIMIT) -> None:
        self._rows = rows
        self._limit = limit
        self._steps_each = 1
        self._columns: list[Column] = []
        self._open = 0

    def add(self, step: int, seen: Seen) -> None:
        """Count one measured step."""
        column = Column.of(step, seen, self._rows)
        if self._open:
            self._columns[-1] = self._columns[-1].merged(column)
        else:
            self._columns.append(column)
        # The column under way takes steps until it has as many as the others.
        self._open = (self._open + 1) % self._steps_each
        # Halved at twice the limit, not at the limit: so each keeps between half and all of them.
        if len(self._columns) == 2 * self._limit and not self._open:
            self._columns = list(_pairs(self._columns))
            self._steps_each *= 2

    def finish(self) -> list[Column]:
        """The columns."""
        columns = self._columns
        while len(columns) > self._limit:
            columns = list(_pairs(columns))
        return columns


def _pairs(columns: list[Column]) -> Iterator[Column]:
    for index in range(0, len(columns), 2):
        pair = columns[index : index + 2]
        yield pair[0].merged(pair[1]) if len(pair) == 2 else pair[0]
