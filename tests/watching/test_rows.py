"""A row's numbers follow from what was seen, and say which zeros are losses."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscale.backward.measure_counts import count_into
from gradscale.backward.measure_rows import empty_counts
from gradscale.backward.measurements import Counts, unscaled_counts
from gradscale.formats import FloatFormat
from gradscale.plans.window import Window, window_of
from gradscale.watching.rows import Row

FORMATS = ("fp16", "bf16", "e5m2", "e4m3", "e3m4")


def counts_of(tensor: torch.Tensor, scale: float = 1.0) -> Counts:
    rows = empty_counts(1)
    count_into(rows[0], tensor)
    return unscaled_counts(rows, [(scale, 0)])[0]


def row_of(tensor: torch.Tensor, format: str, **changed: object) -> Row:
    counts = counts_of(tensor)
    fields = {"exponent": 0, "flushed": 0, "method": "counted"} | changed
    window = window_of(counts, FloatFormat.of(format))
    return Row("w", "parameter", format, counts, window=window, **fields)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.floats(-30, 4, width=32).filter(lambda log: log % 1), min_size=1, max_size=50),
    st.integers(0, 9),
    st.sampled_from(FORMATS),
)
def test_a_counted_row_agrees_with_the_cast(logs: list[float], zeros: int, format: str) -> None:
    true = torch.cat([2.0 ** torch.tensor(logs), torch.zeros(zeros)])
    kept = FloatFormat.of(format).round(true)
    lost = int(((true != 0) & (kept == 0)).sum())
    row = row_of(true, format, flushed=lost)
    assert (row.numel, row.nonzero) == (len(true), int((true != 0).sum()))
    assert row.lost_share == lost / len(logs)
    assert row.zero_share == zeros / len(true)
    subnormal = (kept != 0) & (true < FloatFormat.of(format).smallest_normal)
    assert row.subnormal_share == int(subnormal.sum()) / len(logs)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(-40, 4, width=32), min_size=1, max_size=50), st.integers(0, 9))
def test_the_true_zeros_of_what_half_precision_left_are_those_it_did_not_make(
    logs: list[float], zeros: int
) -> None:
    true = torch.cat([2.0 ** torch.tensor(logs), torch.zeros(zeros)])
    lost = int((true.half()[: len(logs)] == 0).sum())
    row = row_of(true.half(), "fp16", flushed=lost, method="reference")
    assert row.nonzero == len(logs)
    assert row.zero_share == zeros / len(true)
    assert row.lost_share == lost / len(logs)


def test_a_narrower_format_loses_what_was_seen_and_what_was_not() -> None:
    # float16 kept 2^-20 and flushed 2^-30; e5m2 would flush both.
    true = torch.tensor([1.0, 2.0**-20, 2.0**-30, 0.0])
    row = row_of(true.half(), "e5m2", flushed=2, method="extrapolated")
    assert (row.nonzero, row.lost_share, row.zero_share) == (3, 2 / 3, 0.25)


def test_headroom_is_counted_to_the_largest_number_and_is_infinite_for_zeros() -> None:
    row = row_of(torch.tensor([65504.0 / 8]), "fp16", exponent=2)
    assert row.headroom == pytest.approx(1.0)
    assert not row.overflows
    assert row_of(torch.zeros(2), "fp16").headroom == math.inf
    assert row_of(torch.tensor([2.0**12]), "e4m3").overflows
    assert row_of(torch.tensor([math.inf, 1.0]), "fp16").overflows


def test_typical_is_the_logarithmic_mean_to_within_half_an_octave_and_exact_with_moments() -> None:
    values = torch.tensor([1.0, 2.0**-10, 0.0])
    row = row_of(values, "fp16")
    assert row.typical == 2.0**-4.5
    exact = Counts(1.0, 1, 0, -10, (1, *[0] * 9, 1), (0.0, 0.0, -10 * math.log(2), 0.0))
    assert Row("w", "cast", "fp16", exact, 0, 0, "counted", Window()).typical == pytest.approx(
        2.0**-5
    )
    assert row_of(torch.zeros(3), "fp16").typical == 0.0


@pytest.mark.parametrize(("exponent", "needs"), [(-9, -3), (0, 0), (20, 11)])
def test_it_needs_the_nearest_exponent_of_its_window(exponent: int, needs: int) -> None:
    row = Row("w", "module", "fp16", Counts(), exponent, 0, "counted", Window(-3, 11, 13))
    assert row.needs == needs


def test_truth_replaces_the_number_and_says_where_it_is_from() -> None:
    row = row_of(torch.tensor([1.0, 0.0, 0.0]), "fp16", method="extrapolated")
    assert row.lost_share == 0.0
    told = row.with_truth(1, "probe")
    assert (told.flushed, told.method, told.lost_share) == (1, "probe", 0.5)


@pytest.mark.parametrize("moments", [None, (1.0, 2.0, 3.0, 4.0)])
def test_a_row_comes_back_from_json(moments: tuple[float, float, float, float] | None) -> None:
    counts = Counts(0.1, 3, 1, -4, (1, 0, 2), moments)
    window = Window(2, 11, 13, 0.25, True)
    row = Row("a.b", "activation", "e4m3", counts, 0, 1, "counted", window, negligible=True)
    assert Row.from_dict(json.loads(json.dumps(row.to_dict()))) == row
