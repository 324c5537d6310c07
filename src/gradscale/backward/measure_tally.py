"""What was counted on one device, until the host has it: rows, and whose they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradscale.backward.measure_counts import count_into, moments_into
from gradscale.backward.measure_rows import AMAX, OCTAVES, empty_counts, reduce_rows_
from gradscale.backward.measure_segments import Segments
from gradscale.histogram import MIN_OCTAVE

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

MOMENTS = 4
_SLAB = 64
"""Rows that are made ready at a time: of large tensors a model has some hundreds."""


@dataclass
class Part:
    """Rows side by side on one device. What is counted at a place may be spread over several.

    Attributes:
        places: whose the rows are, in their order; rows behind these are free.
        rows: shape `(rows, OCTAVES + octaves)`, int64.
        lowest: the octave of column `OCTAVES`.
        moments: shape `(rows, 4)`, float64; None if nobody wants them.
    """

    places: list[int]
    rows: Tensor
    lowest: int = MIN_OCTAVE
    moments: Tensor | None = None


@dataclass
class Tally:
    """All rows on one device.

    Attributes:
        device: on which they are.
        with_moments: whether moments are summed as well.
        parts: the rows.
    """

    device: torch.device
    with_moments: bool = False
    parts: list[Part] = field(default_factory=list[Part])
    _slabs: list[Part] = field(default_factory=list[Part])
    _rows: dict[int, tuple[Part, int]] = field(default_factory=dict[int, tuple[Part, int]])

    def count(self, place: int, tensor: Tensor, *, ceil: bool) -> None:
        """Adds what a tensor holds to the row of `place`."""
        slab, row = self._row_of(place)
        count_into(slab.rows[row], tensor, ceil=ceil)
        if slab.moments is not None:
            moments_into(slab.moments[row], tensor)

    def add(self, source: int, target: int) -> None:
        """Adds to the row of `target` that of `source`, into which one tensor was counted."""
        (slab, row), (other, into) = self._row_of(source), self._row_of(target)
        amax = torch.maximum(slab.rows[row, AMAX], other.rows[into, AMAX])
        # All columns add up but the maximum, which is put back behind it.
        other.rows[into] += slab.rows[row]
        other.rows[into, AMAX] = amax
        if slab.moments is not None and other.moments is not None:
            other.moments[into] += slab.moments[row]

    def count_together(
        self, places: Sequence[int], tensors: Sequence[Tensor], *, ceil: bool
    ) -> None:
        """Adds what each of many small tensors of one dtype holds to its place."""
        segments = Segments(tensors)
        rows, lowest = segments.counts(ceil=ceil)
        moments = segments.moments() if self.with_moments else None
        self.parts.append(Part(list(places), rows, lowest, moments))

    def adopt(self, part: Part) -> None:
        """Takes rows that were counted elsewhere, one of all octaves for each place."""
        self.parts.append(part)
        for row, place in enumerate(part.places):
            self._rows.setdefault(place, (part, row))

    def _row_of(self, place: int) -> tuple[Part, int]:
        known = self._rows.get(place)
        if known is None:
            slab = self._slabs[-1] if self._slabs else None
            if slab is None or len(slab.places) == _SLAB:
                slab = self._empty(_SLAB)
                self._slabs.append(slab)
                self.parts.append(slab)
            known = self._rows[place] = slab, len(slab.places)
            slab.places.append(place)
        return known

    def _empty(self, rows: int) -> Part:
        counts = empty_counts(rows, self.device)
        moments = None
        if self.with_moments:
            moments = torch.zeros(rows, MOMENTS, dtype=torch.float64, device=self.device)
        return Part([], counts, moments=moments)

    def reduce(self, places: Sequence[int], groups: Iterable[ProcessGroup]) -> None:
        """Adds up the rows of all ranks; from then on there is one for each place.

        Args:
            places: all that may have been counted on this device, the same on all ranks.
            groups: the process groups.
        """
        whole = self._in_one(places)
        reduce_rows_(whole.rows, groups, [] if whole.moments is None else [whole.moments])
        self.parts, self._slabs, self._rows = [whole], [], {}

    def _in_one(self, places: Sequence[int]) -> Part:
        whole = self._empty(len(places))
        whole.places = list(places)
        order = {place: row for row, place in enumerate(places)}
        for part in self.parts:
            rows = part.rows[: len(part.places)]
            into = torch.tensor([order[place] for place in part.places], device=self.device)
            # Read before the sums below, which run over its column, too.
            amax = whole.rows[:, AMAX].scatter_reduce(0, into, rows[:, AMAX], "amax")
            first = OCTAVES + part.lowest - MIN_OCTAVE
            width = rows.shape[1] - OCTAVES
            whole.rows[:, :OCTAVES].index_add_(0, into, rows[:, :OCTAVES])
            whole.rows[:, first : first + width].index_add_(0, into, rows[:, OCTAVES:])
            whole.rows[:, AMAX] = amax
            if whole.moments is not None and part.moments is not None:
                whole.moments.index_add_(0, into, part.moments[: len(part.places)])
        return whole
