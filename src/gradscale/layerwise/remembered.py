"""What earlier measurements add to the latest: gradients that were large once will be again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from gradscale.backward.measurements import Counts, Measurements, Place, PlaceRecord


def remembered(latest: Measurements, earlier: Iterable[Measurements]) -> Measurements:
    """The latest counts, with the largest `amax` that they or earlier ones saw.

    Zeros alone say nothing where something was seen at a higher exponent: that stands.

    Args:
        latest: what was measured last.
        earlier: the oldest first.

    Raises:
        ValueError: if one of them belongs to another graph.

    Example:
        >>> def seen(amax, octaves):
        ...     counts = Counts(amax, octaves=octaves)
        ...     return Measurements("a", (PlaceRecord(0, "arrived", -1, "fp16", 0, counts),))
        >>> remembered(seen(1.0, (5,)), [seen(8.0, (7,))]).records[0].counts
        Counts(amax=8.0, zero=0, nonfinite=0, lowest=0, octaves=(5,), moments=None)
    """
    largest = dict(latest.maxima)
    flushed = {r.place: r for r in latest.records if r.counts.zero and not r.counts.octaves}
    for other in earlier:
        latest.check_same_graph(other)
        for place, amax in other.maxima.items():
            if largest.get(place, amax) < amax:
                largest[place] = amax
        if flushed:
            flushed.update(_seen_above(flushed, other.records))
    known = (flushed.get(record.place, record) for record in latest.records)
    records = (
        record if amax == record.counts.amax else _with_maximum(record, amax)
        for record, amax in zip(known, largest.values(), strict=True)
    )
    return replace(latest, records=tuple(records))


def _seen_above(
    flushed: Mapping[Place, PlaceRecord], earlier: Iterable[PlaceRecord]
) -> dict[Place, PlaceRecord]:
    """Of places of zeros alone, what was seen earlier at higher exponents."""
    return {
        record.place: record
        for record in earlier
        if record.counts.octaves
        and (zeros := flushed.get(record.place)) is not None
        and (zeros.counts.octaves or record.exponent > zeros.exponent)
    }


def _with_maximum(record: PlaceRecord, amax: float) -> PlaceRecord:
    # For every place of every decision: `replace` takes three times as long.
    now = record.counts
    counts = Counts(amax, now.zero, now.nonfinite, now.lowest, now.octaves, now.moments)
    node, kind, target = record.place
    return PlaceRecord(node, kind, target, record.format, record.exponent, counts, record.fan)
