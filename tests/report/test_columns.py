"""The heat map's columns, against sums over all steps at once."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscale.recording import Seen
from gradscale.report.columns import Columns
from gradscale.report.shares import FIRST, OCTAVES, STEPS, UNKNOWN, ZERO, encode_shares


def seen(rows: list[int], flushed: list[int], amax: list[float | None]) -> Seen:
    n = len(rows)
    return Seen(
        lost_share=0.0,
        method="counted",
        id=tuple(rows),
        flushed=tuple(flushed),
        nonzero=(100,) * n,
        zero=(20,) * n,
        nonfinite=(0,) * n,
        amax=tuple(amax),
        exponent=(16,) * n,
        lo=(18,) * n,
        hi=(30,) * n,
        methods=("counted",) * n,
    )


def decode_shares(codes):
    """As `arrays.js` does."""
    shares = np.exp2((codes.astype(np.float64) - FIRST) / STEPS - OCTAVES)
    return np.where(codes == UNKNOWN, np.nan, np.where(codes == ZERO, 0.0, shares))


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 90), limit=st.integers(1, 12))
def test_columns_are_few_in_order_and_lose_nothing(count, limit):
    columns = Columns(1, limit)
    shares = [(7 * i) % 101 for i in range(count)]
    for i, flushed in enumerate(shares):
        columns.add(10 * i, seen([0], [flushed], [-float(i % 5)]))
    found = columns.finish()
    assert len(found) <= limit
    assert found[0].first == 0 and found[-1].last == 10 * (count - 1)
    assert all(a.last < b.first for a, b in pairwise(found))
    assert sum(float(column.flushed[0]) for column in found) == sum(shares)
    assert sum(float(column.nonzero[0]) for column in found) == 100 * count
    assert max(float(column.worst[0]) for column in found) == max(shares) / 100
    assert max(float(column.amax[0]) for column in found) == max(
        -float(i % 5) for i in range(count)
    )


def test_columns_hold_equally_many_steps_but_the_last():
    columns = Columns(1, 4)
    for i in range(11):
        columns.add(i, seen([0], [i], [0.0]))
    spans = [column.last - column.first + 1 for column in columns.finish()]
    assert len(spans) <= 4 and len(set(spans[:-1])) == 1


def test_a_row_that_was_not_measured_is_not_a_row_that_lost_nothing():
    columns = Columns(3)
    columns.add(0, seen([0], [0], [None]))
    columns.add(1, seen([1], [50], [-2.0]))
    first, second = columns.finish()
    assert np.isnan(first.worst[1]) and first.worst[0] == 0.0 and first.amax[0] == -np.inf
    assert np.isnan(second.worst[0]) and second.worst[1] == 0.5
    assert np.isnan(second.worst[2]) and second.flushed[2] == 0


def test_off_is_the_way_to_the_window():
    columns = Columns(1)
    columns.add(0, seen([0], [0], [0.0]))
    assert columns.finish()[0].off[0] == 2.0


@given(st.floats(2.0**-40, 1.0))
def test_an_encoded_share_is_right_to_half_a_percent(share):
    decoded = float(decode_shares(encode_shares(np.array([share])))[0])
    assert abs(decoded / share - 1) < 0.005


def test_zero_all_and_unknown_survive_encoding_exactly():
    shares = np.array([0.0, 1.0, np.nan, 0.5])
    np.testing.assert_array_equal(decode_shares(encode_shares(shares)), shares)
    assert decode_shares(encode_shares(np.array([1e-30])))[0] == 2.0**-40
