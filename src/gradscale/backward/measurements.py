"""What was measured at the nodes of a backward graph, as plain host data in unscaled terms."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from gradscale.backward.measure_rows import AMAX, NONFINITE, OCTAVES, ZERO
from gradscale.exponents import ceil_exponent
from gradscale.histogram import MIN_OCTAVE

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Kind = Literal["arrived", "produced", "weight"]
Moments = tuple[float, float, float, float]
Place = tuple[int, Kind, int]
"""A node, what was measured of it, and the node that receives it, or -1."""


@dataclass(frozen=True)
class Counts:
    """What a tensor held, divided by the scale at which it was stored.

    Attributes:
        amax: the largest finite magnitude; 0 if there is none.
        zero: how many elements are zero, including those that the format had flushed.
        nonfinite: how many are infinite or NaN.
        lowest: the octave of the first entry of `octaves`.
        octaves: how many elements have ``2**(lowest + i) <= |x| < 2**(lowest + i + 1)``.
        moments: sums of ``x``, ``x^2``, ``ln|x|`` and ``(ln|x|)^2``, if they were asked for.

    Example:
        >>> one, two = Counts(1.0, 3, 0, 0, (5,)), Counts(6.0, 0, 0, 2, (1,))
        >>> one + two
        Counts(amax=6.0, zero=3, nonfinite=0, lowest=0, octaves=(5, 0, 1), moments=None)
    """

    amax: float = 0.0
    zero: int = 0
    nonfinite: int = 0
    lowest: int = 0
    octaves: tuple[int, ...] = ()
    moments: Moments | None = None

    @property
    def nonzero(self) -> int:
        """How many elements are finite and not zero."""
        return sum(self.octaves)

    @property
    def numel(self) -> int:
        """How many elements were counted."""
        return self.nonzero + self.zero + self.nonfinite

    def __add__(self, other: Counts) -> Counts:
        lowest, octaves = _add_octaves(self, other)
        moments = None
        if self.moments is not None and other.moments is not None:
            a, b = self.moments, other.moments
            moments = (a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3])
        return Counts(
            amax=max(self.amax, other.amax),
            zero=self.zero + other.zero,
            nonfinite=self.nonfinite + other.nonfinite,
            lowest=lowest,
            octaves=octaves,
            moments=moments,
        )


def _add_octaves(one: Counts, other: Counts) -> tuple[int, tuple[int, ...]]:
    if not one.octaves or not other.octaves:
        filled = one if one.octaves else other
        return filled.lowest, filled.octaves
    lowest = min(one.lowest, other.lowest)
    end = max(one.lowest + len(one.octaves), other.lowest + len(other.octaves))
    total = [0] * (end - lowest)
    for counts in (one, other):
        for index, count in enumerate(counts.octaves, counts.lowest - lowest):
            total[index] += count
    return lowest, tuple(total)


@dataclass(frozen=True)
class PlaceRecord:
    """One measured place of the graph.

    Attributes:
        node: the node's index in the graph.
        kind: ``"arrived"`` at the node, ``"produced"`` by it for `target`, or the ``"weight"`` that
            it multiplies by (not scaled by anything).
        target: the node that a product goes to; -1 otherwise.
        format: the name of the format that held it, such as ``"fp16"``.
        exponent: it was stored as ``2**exponent`` times the true gradient (rounded up).
        counts: what it held.
        fan: of a weight: how many products one element of the gradient behind it sums; else 0.
    """

    node: int
    kind: Kind
    target: int
    format: str
    exponent: int
    counts: Counts
    fan: int = 0

    @property
    def place(self) -> Place:
        """What identifies the record within its graph."""
        return self.node, self.kind, self.target


@dataclass(frozen=True)
class Measurements:
    """All records of one backward pass, or of several that ran through equal graphs.

    Attributes:
        signature: of the graph that they belong to.
        records: at most one for a `place`, in the order of the graph's nodes.
    """

    signature: Hashable
    records: tuple[PlaceRecord, ...] = ()

    @property
    def overflowed(self) -> bool:
        """Whether anything that was measured is infinite or NaN."""
        return any(record.counts.nonfinite for record in self.records if record.kind != "weight")

    @staticmethod
    def of(signature: Hashable, records: Iterable[PlaceRecord]) -> Measurements:
        """Records in any order, several of one place counted as one."""
        by_place: dict[Place, PlaceRecord] = {}
        for record in records:
            known = by_place.setdefault(record.place, record)
            if known is not record:
                by_place[record.place] = _merged(known, record)
        return Measurements(signature, tuple(by_place[place] for place in sorted(by_place)))

    def merged(self, others: Iterable[Measurements]) -> Measurements:
        """These and the others counted as one, as for the micro-batches of a step.

        Raises:
            ValueError: if one of them belongs to another graph.
        """
        records = list(self.records)
        for other in others:
            self.check_same_graph(other)
            records += other.records
        return Measurements.of(self.signature, records)

    @cached_property
    def maxima(self) -> dict[Place, float]:
        """The largest finite magnitude by place."""
        return {record.place: record.counts.amax for record in self.records}

    def check_same_graph(self, other: Measurements) -> None:
        """Raises a ValueError if the other's are of another graph."""
        if other.signature != self.signature:
            raise ValueError(
                f"Measurements of the graph {other.signature!r} cannot be combined with those of "
                f"{self.signature!r}. Keep one history for each signature."
            )

    def as_dict(self) -> dict[str, object]:
        """Plain lists, numbers and strings, for a checkpoint."""
        return {
            "signature": self.signature,
            "records": [asdict(record) for record in self.records],
        }


class PassCounts(Protocol):
    """What is counted in one backward pass: by hooks, or by a captured graph itself."""

    signature: str

    def reduce(self, groups: Iterable[ProcessGroup]) -> None:
        """Merges the counts of all ranks."""
        ...

    def fetch(self) -> None:
        """Begins to copy them to the host."""
        ...

    def remove(self) -> None:
        """Counts no further."""
        ...

    def result(self) -> Measurements:
        """The counts; waits for the copy."""
        ...


def _merged(one: PlaceRecord, other: PlaceRecord) -> PlaceRecord:
    # What was flushed at the lower of two scales is the part that neither knows.
    exponent = min(one.exponent, other.exponent)
    return replace(one, exponent=exponent, counts=one.counts + other.counts)


def unscaled_counts(
    rows: Tensor,
    scales: Sequence[tuple[float, int]],
    moments: Tensor | None = None,
    *,
    lowest: int = MIN_OCTAVE,
) -> list[Counts]:
    """Rows of `measure_rows` as counts of the true gradients.

    Args:
        rows: shape `(n, OCTAVES + octaves)`, int64, on the host.
        scales: for each row the loss scale and the exponent relative to it.
        moments: shape `(n, 4)`, float64, on the host, or None.
        lowest: the octave of column `OCTAVES`.

    Returns:
        One for each row. A scale that is no power of two shifts the octaves by its exponent rounded
        up, so that no magnitude is overstated.
    """
    largest = rows[:, AMAX].to(torch.int32).view(torch.float32).tolist()
    heads = rows[:, ZERO : NONFINITE + 1].tolist()
    sums = [None] * len(heads) if moments is None else moments.tolist()
    shifts = {stored: ceil_exponent(stored[0]) + stored[1] for stored in set(scales)}
    result: list[Counts] = []
    for stored, amax, (zero, nonfinite), (first, octaves), row_sums in zip(
        scales, largest, heads, _filled(rows[:, OCTAVES:]), sums, strict=True
    ):
        scale, exponent = stored
        unscaled = None
        if row_sums is not None:
            log_scale = math.log(scale) + exponent * math.log(2)
            unscaled = _unscaled_moments(row_sums, sum(octaves), log_scale)
        lowest_octave = lowest + first - shifts[stored] if octaves else 0
        largest_value = math.ldexp(amax / scale, -exponent)
        result.append(Counts(largest_value, zero, nonfinite, lowest_octave, octaves, unscaled))
    return result


def _filled(octaves: Tensor) -> list[tuple[int, tuple[int, ...]]]:
    """Of each row the first column that is not zero, and all from there to the last that is not."""
    used = octaves != 0
    columns = used.any(0).nonzero()
    if not len(columns):
        return [(0, ())] * len(octaves)
    begin, end = int(columns[0]), int(columns[-1]) + 1
    used = used[:, begin:end].to(torch.uint8)
    firsts = used.argmax(1).tolist()
    ends = (used.shape[1] - used.flip(1).argmax(1)).tolist()
    filled = used.any(1).tolist()
    return [
        (begin + first, tuple(row[first:last])) if some else (0, ())
        for row, first, last, some in zip(
            octaves[:, begin:end].tolist(), firsts, ends, filled, strict=True
        )
    ]


def _unscaled_moments(sums: Sequence[float], nonzero: int, log_scale: float) -> Moments:
    inverse = math.exp(-log_scale)
    total, squares, logs, log_squares = sums
    return (
        total * inverse,
        squares * inverse * inverse,
        # ln(x / S) = ln x - ln S, summed over the non-zero x; below, its square.
        logs - nonzero * log_scale,
        log_squares - 2 * log_scale * logs + nonzero * log_scale * log_scale,
    )
