"""What earlier measurements add to the latest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradscale.backward.measurements import Counts, Measurements, PlaceRecord
from gradscale.layerwise.remembered import remembered


def test_zeros_below_where_something_was_seen_are_what_was_flushed() -> None:
    def seen(exponent: int, *octaves: int) -> Measurements:
        held = Counts(0.5 * bool(octaves), zero=9 - sum(octaves), lowest=-1, octaves=octaves)
        return Measurements("a", (PlaceRecord(0, "arrived", -1, "fp16", exponent, held),))

    (low,) = remembered(seen(-20), [seen(4, 1), seen(3, 2), seen(-19)]).records
    assert (low.exponent, low.counts.octaves, low.counts.amax) == (3, (2,), 0.5)
    (high,) = remembered(seen(5), [seen(4, 1)]).records  # at a higher exponent zeros are zeros
    assert (high.exponent, high.counts.octaves, high.counts.amax) == (5, (), 0.5)
    assert remembered(seen(-20), [seen(-20)]) == seen(-20)


@given(st.lists(st.lists(st.floats(0, 100), min_size=3, max_size=3), min_size=1, max_size=5))
def test_the_largest_of_all_counts_and_the_octaves_of_the_latest(maxima: list[list[float]]) -> None:
    measured = [
        Measurements(
            "a",
            tuple(
                PlaceRecord(node, "arrived", -1, "fp16", 0, Counts(amax, octaves=(number + 1,)))
                for node, amax in enumerate(row)
            ),
        )
        for number, row in enumerate(maxima)
    ]
    *earlier, latest = measured
    found = remembered(latest, earlier)
    assert found.maxima == {(n, "arrived", -1): max(row[n] for row in maxima) for n in range(3)}
    assert all(record.counts.octaves == (len(maxima),) for record in found.records)


def test_another_graph_has_another_past() -> None:
    with pytest.raises(ValueError, match="Keep one history"):
        remembered(Measurements("a"), [Measurements("b")])
