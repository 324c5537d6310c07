"""How numbers are shown, and what is called worse than float32."""

from __future__ import annotations

import dataclasses
import io
import math

import pytest

from gradscale.cli.display import scale_text
from gradscale.cli.table import scales, share, skips, spread, worse
from gradscale.training import Row, Spread, Summary


def summary(loss: float, versus: Spread, **given) -> Summary:
    fields = {
        "loss_divisor": 1.0,
        "row": Row("fp16", "dynamic"),
        "metric": Spread(0.5, 0.0),
        "lost": None,
        "skipped": {},
        "steps": 30,
        "scales": (1.0,),
        "ms_per_step": 1.0,
        **given,
    }
    return Summary(loss=Spread(loss, 0.0), versus=versus, **fields)


@pytest.mark.parametrize(
    ("loss", "versus", "expected"),
    [
        (1.0, Spread(0.0, 0.0), False),
        (1.05, Spread(0.05, 0.001), False),
        (1.2, Spread(0.2, 0.2), False),
        (1.2, Spread(0.2, 0.01), True),
        (0.5, Spread(-0.5, 0.01), False),
        (math.nan, Spread(math.nan, math.nan), True),
        (math.inf, Spread(math.inf, math.nan), True),
    ],
)
def test_worse_is_by_a_tenth_and_beyond_the_noise(loss, versus, expected):
    assert worse(summary(loss, versus)) is expected


def test_skips_name_their_reasons():
    assert skips(summary(1.0, Spread(0, 0), skipped={})) == "0"
    two = {"overflow": 3, "nonfinite_loss": 1}
    assert skips(summary(1.0, Spread(0, 0), skipped=two)) == "1 nonfinite_loss, 3 overflow"
    assert skips(summary(1.0, Spread(0, 0), row=Row("fp16", "none"))) == "–"


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "1"), (2.0**-3, "2^-3"), (2.0**40, "2^40"), (3.0, "3")]
)
def test_scales_are_powers_where_they_are_ones(value, text):
    assert scale_text(value) == text
    assert scales((value, value)) == text


def test_the_widest_table_fits_into_eighty_columns():
    from rich.console import Console

    from gradscale.cli.table import comparison_table
    from gradscale.recipes import find
    from gradscale.training import Comparison

    asked = Comparison("digits", "fp16", ("last-maximum",), (16384.0,), 3, {"device": "cpu"})
    row = Row("fp16", "last-maximum")
    widest = summary(
        1.799, Spread(0.0, 0.0), loss_divisor=16384.0, row=row, skipped={"overflow": 8}
    )
    widest = dataclasses.replace(
        widest,
        loss=Spread(1.799, 0.299),
        metric=Spread(0.339, 0.113),
        lost=Spread(7.9e-5, 0.0),
        scales=(2.0**34, 2.0**35),
        ms_per_step=109.1,
    )
    screen = Console(width=80, record=True, file=io.StringIO())
    screen.print(comparison_table(asked, [widest], find("digits"), width=80))
    line = next(line for line in screen.export_text().splitlines() if "last-maximum" in line)
    assert line.split() == (
        "fp16 last-maximum 1.799 ± 0.299 33.9 ± 11.3 0.0079 8 overflow 2^34..35 109".split()
    )


def test_shares_keep_two_places():
    assert [share(value) for value in (0.0, 0.5, 0.00123, 1e-8)] == [
        "0",
        "50",
        "0.12",
        "1.0e-06",
    ]


def test_a_single_seed_has_no_deviation():
    assert spread(Spread(1.25, 0.0), 2) == "1.25"
    assert spread(Spread(math.nan, math.nan), 2) == "nan ± nan"
