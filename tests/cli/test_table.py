"""How numbers are shown, and what is called worse than float32."""

from __future__ import annotations

import dataclasses
import io
import math

import pytest
from rich.console import Console

from gradscale.cli.display import scale_text
from gradscale.cli.table import comparison_table, percentage, scales, skips, spread, worse
from gradscale.recipes import find
from gradscale.training import SCALINGS, Candidate, Comparison, Spread, Summary


def summary(loss: float, versus: Spread, **given) -> Summary:
    fields = {
        "loss_divisor": 1.0,
        "row": Candidate("fp16", "dynamic"),
        "metric": Spread(0.5, 0.0),
        "lost_share": None,
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
    assert skips(summary(1.0, Spread(0, 0), row=Candidate("fp16", "none"))) == "–"


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "1"), (2.0**-3, "2^-3"), (2.0**40, "2^40"), (3.0, "3")]
)
def test_scales_are_powers_where_they_are_ones(value, text):
    assert scale_text(value) == text
    assert scales((value, value)) == text


def shown(width: int, scaling: str = "last-maximum", **given) -> list[str]:
    asked = Comparison("digits", "fp16", (scaling,), (16384.0,), 3, {"device": "cpu"})
    fields = {
        "loss_divisor": 16384.0,
        "row": Candidate("fp16", scaling),
        "skipped": {"overflow": 8},
        "metric": Spread(0.339, 0.113),
        "lost_share": Spread(7.9e-5, 0.0),
        "scales": (2.0**34, 2.0**35),
        "ms_per_step": 109.1,
        **given,
    }
    widest = dataclasses.replace(
        summary(1.799, Spread(0.0, 0.0), **fields), loss=Spread(1.799, 0.299)
    )
    screen = Console(width=width, record=True, file=io.StringIO())
    screen.print(comparison_table(asked, [widest], find("digits"), width=width))
    lines = screen.export_text().splitlines()
    assert max(map(len, lines)) <= width and "…" not in "".join(lines)
    return lines


NUMBERS = "1.799 ± 0.299 33.9 ± 11.3"


@pytest.mark.parametrize(
    ("width", "cells"),
    [
        (100, "0.0079 8 overflow 2^34..35 109"),
        (80, "0.0079 8 2^34..35 109"),
        (72, "0.0079 8 2^34..35"),
        (65, "0.0079 8"),
    ],
)
def test_a_table_that_is_too_wide_loses_what_is_needed_least(width, cells):
    line = next(line for line in shown(width) if "last-maximum" in line)
    assert line.split() == f"fp16 last-maximum {NUMBERS} {cells}".split()


@pytest.mark.parametrize("scaling", SCALINGS)
def test_every_row_fits_into_eighty_columns_with_real_numbers(scaling):
    many = {"overflow": 1234, "nonfinite_loss": 56, "zero": 7}
    lines = shown(80, scaling, skipped=many, scales=(12345.0, 987654.0), ms_per_step=1234.5)
    line = next(line for line in lines if NUMBERS in line)
    assert (" 1297" in line) == (scaling != "none")


def test_shares_keep_two_places():
    assert [percentage(value) for value in (0.0, 0.5, 0.00123, 1e-8)] == [
        "0",
        "50",
        "0.12",
        "1.0e-06",
    ]


def test_a_single_seed_has_no_deviation():
    assert spread(Spread(1.25, 0.0), 2) == "1.25"
    assert spread(Spread(math.nan, math.nan), 2) == "nan ± nan"
