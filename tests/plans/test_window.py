"""Windows against the real casts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscale.backward.measure_counts import count_into
from gradscale.backward.measure_rows import empty_counts
from gradscale.backward.measurements import Counts, unscaled_counts
from gradscale.formats import FloatFormat
from gradscale.plans.window import (
    FAR,
    Window,
    flushed_share,
    highest_exponent,
    intersection,
    lowest_exponent,
    sum_window,
    window_of,
    with_flushed,
)

FORMATS = ["fp16", "e5m2", "e4m3"]
FP16 = FloatFormat.of("fp16")


def counts_of(tensor: torch.Tensor, exponent: int = 0) -> Counts:
    rows = empty_counts(1)
    count_into(rows[0], tensor)
    return unscaled_counts(rows, [(1.0, exponent)])[0]


def lognormal(seed: int, spread: float, center: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    sign = torch.randn(2000, generator=generator).sign()
    return sign * torch.exp2(spread * torch.randn(2000, generator=generator) + center)


@pytest.mark.parametrize("name", FORMATS)
@given(amax=st.floats(1e-20, 1e20))
@settings(deadline=None)
def test_the_highest_exponent_is_the_last_that_does_not_overflow(name: str, amax: float) -> None:
    format = FloatFormat.of(name)
    e = highest_exponent(amax, format)
    assert math.ldexp(amax, e) < format.overflow_threshold <= math.ldexp(amax, e + 1)


@pytest.mark.parametrize("name", FORMATS)
@given(seed=st.integers(0, 999), spread=st.floats(0.5, 6), center=st.integers(-30, 10))
@settings(max_examples=30, deadline=None)
def test_within_its_window_a_tensor_meets_both_ends(
    name: str, seed: int, spread: float, center: int
) -> None:
    format = FloatFormat.of(name)
    grads = lognormal(seed, spread, center)
    window = window_of(counts_of(grads), format, flushed=1e-2)
    for exponent in {window.lo, window.hi, window.limit}:
        scaled = torch.ldexp(grads, torch.tensor(exponent))
        lost = (format.round(scaled) == 0).float().mean().item()
        assert scaled.abs().max() * 2 < format.overflow_threshold * (1 + (exponent > window.hi))
        assert lost <= 1e-2 or window.lost == pytest.approx(lost, abs=1e-6)
    if window.lost == 0 and window.lo > -FAR:
        below = torch.ldexp(grads, torch.tensor(window.lo - 1))
        assert (format.round(below) == 0).float().mean() > 1e-2


def test_an_empty_window_avoids_overflow_first_and_says_what_is_lost() -> None:
    grads = torch.tensor([2.0**-30] * 50 + [2.0**10] * 50)
    format = FloatFormat.of("fp16")
    window = window_of(counts_of(grads), format)
    assert window.lo == window.hi == highest_exponent(2.0**10, format) - 1
    assert window.lost == 0.5


def test_headroom_gives_way_before_gradients_do() -> None:
    format = FloatFormat.of("fp16")
    spans = [2.0**-24, 2.0**14]
    window = window_of(counts_of(torch.tensor(spans)), format, headroom=4)
    assert (window.lo, window.hi, window.lost) == (-1, 0, 0.0) or window.lo == window.hi
    assert window.hi <= highest_exponent(spans[1], format) - 1


def test_zeros_and_nothing_limit_nothing() -> None:
    assert window_of(counts_of(torch.zeros(5)), FloatFormat.of("fp16")) == Window()
    assert window_of(Counts(), FloatFormat.of("fp16")).free


@given(seed=st.integers(0, 999), center=st.integers(-26, -16))
@settings(max_examples=40, deadline=None)
def test_what_the_cast_had_flushed_is_estimated_within_a_factor(seed: int, center: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(20000, generator=generator) * 2.0**center
    half = FloatFormat.of("fp16")
    stored = counts_of(truth.half())
    guess = with_flushed(stored, half, 0)
    lost = int((truth.half() == 0).sum())
    assert guess.nonzero + guess.zero == 20000
    guessed = guess.nonzero - stored.nonzero
    assert guessed <= lost
    if center >= -22 and lost > 100:
        assert guessed >= lost / 4


def test_true_zeros_far_above_the_bound_are_not_taken_for_flushed() -> None:
    relu = torch.cat([torch.zeros(500), torch.full((500,), 0.5)])
    counts = counts_of(relu.half())
    assert with_flushed(counts, FloatFormat.of("fp16"), 0) is counts


@given(term=st.floats(1e-9, 1e4), terms=st.integers(1, 5000))
def test_a_sum_of_its_largest_terms_stays_finite(term: float, terms: int) -> None:
    half = FloatFormat.of("fp16")
    window = sum_window(term, terms, half)
    assert terms * math.ldexp(term, window.hi) < half.overflow_threshold


windows = st.builds(
    lambda lo, width: Window(lo, lo + width, lo + width + 2),
    st.integers(-20, 20),
    st.integers(0, 9),
)


@given(found=st.lists(windows, max_size=5))
def test_an_intersection_is_never_empty_and_never_above_any_window(found: list[Window]) -> None:
    common = intersection(found)
    assert common.lo <= common.hi
    assert all(common.hi <= window.hi for window in found)


def test_flushed_share_agrees_with_the_window() -> None:
    half = FloatFormat.of("fp16")
    counts = counts_of(lognormal(0, 5.0, -10))
    lo = lowest_exponent(counts, half, 1e-2)
    assert flushed_share(counts, half, lo) <= 1e-2 < flushed_share(counts, half, lo - 1)


def half_of_zeros(generator: torch.Generator, size: int, shift: int) -> torch.Tensor:
    kept = torch.rand(size, generator=generator) > 0.5
    return torch.randn(size, generator=generator) * kept * 2.0**shift


@pytest.mark.parametrize("size", [300, 30_000])
def test_with_a_prior_true_zeros_are_less_often_taken_for_flushed(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    errors: dict[int, list[float]] = {0: [], 16: []}
    for shift in (-16, -20, -22, -24):
        for _ in range(4):
            true = half_of_zeros(generator, size, shift)
            lost = (true != 0) & (true.half() == 0)
            seen = counts_of(true.half())
            for prior, found in errors.items():
                whole = with_flushed(seen, FP16, 0, prior=prior)
                estimate = (whole.nonzero - seen.nonzero) / whole.nonzero
                found.append(abs(estimate - float(lost.sum() / (true != 0).sum())))
    assert sum(errors[16]) < 0.75 * sum(errors[0])


def test_a_few_stray_elements_are_not_continued_for_ever() -> None:
    counts = Counts(1.0, 5000, 0, -24, (1, 1, 1, *[0] * 10, 5000))
    assert with_flushed(counts, FP16, 0).nonzero - counts.nonzero == 63
    assert with_flushed(counts, FP16, 0, prior=16) == counts
