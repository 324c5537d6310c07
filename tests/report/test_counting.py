"""What histograms say of other scales, against real tensors rounded at those scales."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscale.formats import FloatFormat
from gradscale.histogram import MIN_OCTAVE, count_exponents
from gradscale.recording.schema import Octaves
from gradscale.report.counting import SPARE, Fate, best_scale, fate, summed
from gradscale.report.histograms import Histogram
from gradscale.report.ranges import OFFERED, range_of

FORMATS = [*OFFERED, "e3m4"]


def gradients(seed: int, center: float, spread: float, count: int = 400) -> torch.Tensor:
    """Log-normal magnitudes, none of them a power of two, so none on a bound between octaves."""
    generator = torch.Generator().manual_seed(seed)
    logs = center + spread * torch.randn(count, generator=generator, dtype=torch.float64)
    octave = logs.floor().clamp(-100, 90)
    mantissa = 1 + (logs - logs.floor()).clamp(1 / 64, 63 / 64)
    return (mantissa * 2**octave).to(torch.float32)


def histogram(tensor: torch.Tensor, exponent: int = 0, log2_scale: float = 0.0) -> Histogram:
    counts = count_exponents(tensor)
    used = counts.nonzero().flatten().tolist()
    octaves = Octaves(used[0] + MIN_OCTAVE, tuple(counts[used[0] : used[-1] + 1].tolist()))
    amax = math.log2(float(tensor.abs().max()))
    return Histogram(0, log2_scale, octaves, exponent, 0, int((tensor == 0).sum()), amax)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(FORMATS),
    seed=st.integers(0, 1000),
    center=st.floats(-40, 20),
    spread=st.floats(0.5, 12),
    exponent=st.integers(-24, 24),
)
def test_lost_elements_are_those_that_the_format_rounds_to_zero(
    name, seed, center, spread, exponent
):
    format = FloatFormat.of(name)
    tensor = gradients(seed, center, spread)
    stored = torch.ldexp(tensor.double(), torch.tensor(exponent)).float()
    found = fate(histogram(tensor), range_of(format), exponent)
    assert found.nonzero == tensor.numel()
    assert found.lost == int((format.round(stored) == 0).sum())


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(FORMATS),
    seed=st.integers(0, 1000),
    center=st.floats(-20, 30),
    exponent=st.integers(-20, 20),
)
def test_overflow_is_never_overstated_and_never_missed(name, seed, center, exponent):
    format = FloatFormat.of(name)
    tensor = gradients(seed, center, 5.0)
    stored = tensor.double() * 2.0**exponent
    truly = int((stored >= format.overflow_threshold).sum())
    found = fate(histogram(tensor), range_of(format), exponent)
    top_octave = int(
        ((stored >= 2.0**format.max_exponent) & (stored < 2.0 * 2.0**format.max_exponent)).sum()
    )
    assert truly - top_octave <= found.overflowed <= truly
    assert found.touches == (truly > 0)


def test_what_was_lost_unseen_stays_lost_at_any_scale():
    seen = Histogram(0, 0.0, Octaves(-3, (5,)), 0, 7, 2, -2.5)
    half = range_of(FloatFormat.of("fp16"))
    assert fate(seen, half, 0) == Fate(nonzero=12, lost=7, unseen=7)
    assert fate(seen, half, 10).lost == 7
    assert fate(seen, half, -30).lost == 12


def test_a_total_adds_up_and_remembers_that_something_overflows():
    both = summed([Fate(10, 4, 1, 2, False, 3), Fate(5, 0, 0, 0, True, 0)])
    assert both == Fate(15, 4, 1, 2, True, 3)
    assert both.share == 4 / 15
    assert Fate().share == 0.0


def brute_force_best(stored, around: int, reach: int) -> int | None:
    """Tries every scale, and counts each anew."""
    best = None
    for scale in range(around - reach, around + reach + 1):
        safe = all(it.amax + it.offset + scale + SPARE < span["limit"] for it, span in stored)
        if safe:
            lost = sum(fate(it, span, it.offset + scale).lost for it, span in stored)
            if best is None or lost < best[0]:
                best = lost, scale
    return None if best is None else best[1]


@settings(max_examples=40, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 1000), min_size=1, max_size=4),
    center=st.floats(-40, 10),
    offset=st.integers(-4, 12),
    name=st.sampled_from(["fp16", "e5m2", "e4m3"]),
)
def test_the_best_scale_is_the_one_that_trying_all_of_them_finds(seeds, center, offset, name):
    span = range_of(FloatFormat.of(name))
    stored = [
        (histogram(gradients(seed, center - 3 * i, 4.0), 16 + i * offset, 16.0), span)
        for i, seed in enumerate(seeds)
    ]
    assert best_scale(stored, 16) == brute_force_best(stored, 16, 30)


def test_there_is_no_best_scale_where_nothing_can_be_moved():
    span = range_of(FloatFormat.of("fp16"))
    zeros = Histogram(0, 16.0, Octaves(0, ()), 16, 0, 4, -math.inf)
    assert best_scale([], 16) is None
    assert best_scale([(zeros, span)], 16) is None
    huge = Histogram(0, 16.0, Octaves(100, (1,)), 16, 0, 0, 100.5)
    assert best_scale([(huge, span)], 16) is None


def test_at_the_best_scale_nothing_overflows_and_two_octaves_are_spared():
    format = FloatFormat.of("fp16")
    tensor = gradients(1, -20, 5.0)
    scale = best_scale([(histogram(tensor), range_of(format))], 0)
    assert scale is not None
    amax = float(tensor.max())
    assert amax * 2.0 ** (scale + SPARE) < format.overflow_threshold
    assert (format.round(tensor * 2.0**scale) == 0).sum() <= (format.round(tensor) == 0).sum()


@pytest.mark.parametrize("name", FORMATS)
def test_a_range_is_where_the_format_itself_changes(name):
    format = FloatFormat.of(name)
    span = range_of(format)
    inside = torch.tensor([1.25 * 2.0 ** span["flush"], 2.0 ** span["normal"], format.max])
    assert (format.round(inside) != 0).all()
    assert format.round(torch.tensor(1.25 * 2.0 ** (span["flush"] - 1))) == 0
    assert math.isclose(2 ** span["limit"], format.overflow_threshold)
    assert 2.0 ** span["top"] <= format.max < 2.0 ** (span["top"] + 1)
