"""The histogram against brute force, and its three shares against the real casts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from gradscale.formats import FloatFormat
from gradscale.histogram import (
    EXPONENT_BINS,
    MIN_OCTAVE,
    count_exponents,
    flushed_fraction,
    magnitude_bits,
    overflowed_fraction,
    subnormal_fraction,
)
from tensor_kinds import FLOAT_DTYPES

FORMATS = ["fp16", "bf16", "e5m2", "e4m3"]
FLOAT32_MAX = torch.finfo(torch.float32).max

floats = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)


def brute_force(values: list[float]) -> list[int]:
    counts = [0] * EXPONENT_BINS
    for value in values:
        if value != 0 and math.isfinite(value):
            counts[math.frexp(abs(value))[1] - 1 - MIN_OCTAVE] += 1
    return counts


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@given(values=st.lists(floats, max_size=40))
@settings(max_examples=40, deadline=None)
def test_counts_equal_brute_force(values: list[float], dtype: torch.dtype) -> None:
    tensor = torch.tensor(values, dtype=torch.float32).to(dtype)
    assert count_exponents(tensor).tolist() == brute_force(tensor.to(torch.float64).tolist())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e5m2, torch.float8_e4m3fn], ids=str)
def test_every_value_of_a_small_format_is_counted_in_its_octave(dtype: torch.dtype) -> None:
    size = torch.int16 if dtype == torch.float16 else torch.uint8
    codes = torch.arange(2**16 if dtype == torch.float16 else 2**8)
    tensor = codes.to(size).view(dtype)
    assert count_exponents(tensor).tolist() == brute_force(tensor.to(torch.float64).tolist())


def test_the_ends_of_float32_fall_into_the_first_and_the_last_bin() -> None:
    counts = count_exponents(torch.tensor([2.0**-149, FLOAT32_MAX]))
    assert (counts[0], counts[-1], counts.sum()) == (1, 1, 2)


def test_a_finite_float64_beyond_float32_stays_finite() -> None:
    tensor = torch.tensor([1e300, -1e300, math.inf, 1e-300], dtype=torch.float64)
    assert count_exponents(tensor)[-1] == 2 and count_exponents(tensor).sum() == 2


def test_magnitude_bits_order_as_the_magnitudes() -> None:
    tensor = torch.randn(1000) * torch.exp(20 * torch.randn(1000))
    assert torch.equal(torch.sort(tensor.abs()).indices, torch.sort(magnitude_bits(tensor)).indices)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (4, 5)], ids=str)
def test_any_shape_is_counted(shape: tuple[int, ...]) -> None:
    assert count_exponents(torch.ones(shape)).sum() == torch.ones(shape).numel()


def test_a_strided_view_counts_only_what_it_shows() -> None:
    assert count_exponents(torch.ones(6, 6)[::2, 1::3].T).sum() == 6
    assert count_exponents(torch.ones(1).expand(7)).sum() == 7


def test_counting_never_reads_the_tensor_on_the_host() -> None:
    with FakeTensorMode():
        assert count_exponents(torch.ones(8, dtype=torch.float16)).shape == (EXPONENT_BINS,)


@pytest.mark.parametrize("name", FORMATS)
@given(
    exponents=st.lists(st.integers(-60, 30), min_size=1, max_size=30),
    log2_scale=st.integers(-20, 40),
    mantissa=st.floats(1.0, 1.875, exclude_min=True, width=32),
)
@settings(max_examples=60, deadline=None)
def test_the_flushed_share_is_that_of_the_real_cast(
    name: str, exponents: list[int], log2_scale: int, mantissa: float
) -> None:
    format = FloatFormat.of(name)
    grads = torch.tensor([math.ldexp(mantissa, exponent) for exponent in exponents])
    cast = format.round(grads * 2.0**log2_scale)
    if name != "bf16":
        assert format.dtype is not None
        native = (grads * 2.0**log2_scale).clamp(-format.max, format.max).to(format.dtype)
        assert torch.equal(native.float() == 0, cast == 0)
    expected = (cast == 0).float().mean()
    assert flushed_fraction(count_exponents(grads), format, log2_scale) == expected


def test_a_value_exactly_on_the_bound_counts_as_kept_though_it_flushes() -> None:
    half = FloatFormat.of("fp16")
    grads = torch.tensor([2.0**-25])
    assert half.round(grads) == 0 and flushed_fraction(count_exponents(grads), half) == 0


@pytest.mark.parametrize("name", FORMATS)
@given(exponents=st.lists(st.integers(-45, 20), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_the_subnormal_share_is_that_of_the_real_cast(name: str, exponents: list[int]) -> None:
    format = FloatFormat.of(name)
    grads = torch.tensor([math.ldexp(1.01, exponent) for exponent in exponents])
    cast = format.round(grads)
    expected = ((cast != 0) & (cast.abs() < format.smallest_normal)).float().mean()
    assert subnormal_fraction(count_exponents(grads), format) == expected


@pytest.mark.parametrize("name", FORMATS)
@given(exponents=st.lists(st.integers(-10, 25), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_the_overflowed_share_is_exact_for_whole_octaves(name: str, exponents: list[int]) -> None:
    format = FloatFormat.of(name)
    grads = torch.tensor([2.0**exponent for exponent in exponents])
    expected = (grads >= format.overflow_threshold).float().mean()
    assert overflowed_fraction(count_exponents(grads), format) == expected


def test_the_overflowed_share_misses_what_lies_in_the_last_octave() -> None:
    half = FloatFormat.of("fp16")
    assert torch.isinf(half.round(torch.tensor([65520.0])))
    assert overflowed_fraction(count_exponents(torch.tensor([65520.0])), half) == 0


@pytest.mark.parametrize("share", [flushed_fraction, subnormal_fraction, overflowed_fraction])
def test_shares_work_over_groups_and_are_zero_for_an_empty_one(share: object) -> None:
    counts = torch.stack([count_exponents(torch.zeros(3)), count_exponents(torch.ones(3))])
    assert share(counts, FloatFormat.of("fp16"), 16).tolist() == [
        0,
        share(counts[1], FloatFormat.of("fp16"), 16),
    ]  # type: ignore[operator]


@given(first=st.integers(-20, 20), second=st.integers(-20, 20))
@settings(max_examples=40, deadline=None)
def test_shares_at_a_scale_equal_shares_of_the_scaled_tensor(first: int, second: int) -> None:
    half = FloatFormat.of("fp16")
    grads = torch.randn(200) * 2.0**first
    for share in (flushed_fraction, subnormal_fraction, overflowed_fraction):
        scaled = share(count_exponents(grads * 2.0**second), half)
        assert share(count_exponents(grads), half, second) == scaled
