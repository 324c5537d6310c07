"""Number formats against two independent codecs: gfloat for any format, ml_dtypes for the named."""

from __future__ import annotations

import gfloat
import ml_dtypes
import numpy as np
import pytest
import torch
from gfloat.types import Domain
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscale.formats import FloatFormat

NAMED = {
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3": ml_dtypes.float8_e4m3fn,
}
LIMITS = {  # max, smallest normal, smallest subnormal, first magnitude that rounds above max
    "fp32": (float(np.finfo(np.float32).max), 2.0**-126, 2.0**-149, 2.0**128 - 2.0**103),
    "bf16": (2.0**128 - 2.0**120, 2.0**-126, 2.0**-133, 2.0**128 - 2.0**119),
    "fp16": (65504.0, 2.0**-14, 2.0**-24, 65520.0),
    "e5m2": (57344.0, 2.0**-14, 2.0**-16, 61440.0),
    "e4m3": (448.0, 2.0**-6, 2.0**-9, float(np.nextafter(464.0, 500.0))),
}  # fmt: skip


def codec(format: FloatFormat) -> gfloat.FormatInfo:
    """The same format in gfloat, with an infinity that the caller may turn into another rule."""
    codes = 2**format.mantissa_bits if format.reserved is None else format.reserved
    return gfloat.FormatInfo(
        format.name,
        1 + format.exponent_bits + format.mantissa_bits,
        format.mantissa_bits + 1,
        bias=2 ** (format.exponent_bits - 1) - 1,
        is_signed=True,
        domain=Domain.Extended if codes else Domain.Finite,
        has_nz=True,
        num_high_nans=max(codes - 1, 0),
        has_subnormals=True,
        is_twos_complement=False,
    )


def rounded_by_codec(format: FloatFormat, values: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # signaling NaN patterns
        double = values.astype(np.float64)
    found = gfloat.round_ndarray(codec(format), double, sat=format.overflow == "saturate")
    if format.overflow == "nan":
        found = np.where(np.isinf(found), np.nan, found)
    return found.astype(np.float32)


def assert_same_values(found: torch.Tensor, wanted: np.ndarray) -> None:
    """Equal, the sign of zero and the places of NaN included."""
    got = found.float().numpy()
    np.testing.assert_array_equal(got, wanted)
    numbers = ~np.isnan(wanted)
    np.testing.assert_array_equal(np.signbit(got)[numbers], np.signbit(wanted)[numbers])


def patterns(bits: np.ndarray, dtype: type) -> torch.Tensor:
    with np.errstate(invalid="ignore"):  # signaling NaN patterns
        return torch.from_numpy(bits.view(dtype).astype(np.float32))


@st.composite
def formats(draw: st.DrawFn) -> FloatFormat:
    exponent_bits, mantissa_bits = draw(st.integers(2, 8)), draw(st.integers(1, 23))
    overflow = draw(st.sampled_from(["inf", "nan", "saturate"]))
    reserved = None
    if exponent_bits < 8 and draw(st.booleans()):
        lowest = 0 if overflow == "saturate" else 1
        reserved = draw(st.integers(lowest, min(2**mantissa_bits - 1, 5)))
    return FloatFormat(exponent_bits, mantissa_bits, overflow, reserved)


def awkward_values(format: FloatFormat, seed: int) -> torch.Tensor:
    """Random bit patterns, values of the format, the ties between them, and their neighbors."""
    with np.errstate(over="ignore", invalid="ignore"):
        random = np.random.default_rng(seed)
        anything = random.integers(0, 2**32, 256, dtype=np.uint32).view(np.float32)
        octaves = random.uniform(
            format.min_exponent - format.mantissa_bits - 2, format.max_exponent + 1, 256
        )
        near = np.exp2(octaves).astype(np.float32) * random.choice(np.float32([-1, 1]), 256)
        near = np.concatenate(
            [near, np.float32([format.max, format.flush_threshold, format.overflow_threshold])]
        )
        low = codec(format)
        down = gfloat.round_ndarray(low, near.astype(np.float64), gfloat.RoundMode.TowardZero)
        up = down + np.copysign(_quantum(format, down), down)
        ties = ((down + up) / 2).astype(np.float32)
        beside = np.concatenate([np.nextafter(ties, np.float32(d)) for d in (np.inf, -np.inf)])
        special = np.float32([0.0, -0.0, np.inf, -np.inf, np.nan])
        return torch.from_numpy(np.concatenate([anything, near, ties, beside, special]))


def _quantum(format: FloatFormat, values: np.ndarray) -> np.ndarray:
    magnitude = np.maximum(np.abs(values), format.smallest_normal)
    return np.exp2(np.floor(np.log2(magnitude)) - format.mantissa_bits)


@pytest.mark.parametrize("name", NAMED)
def test_every_8_bit_pattern_is_a_fixed_point_or_rounds_as_the_codec_says(name: str) -> None:
    for dtype in (ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3fn):
        values = patterns(np.arange(256, dtype=np.uint8), dtype)
        found = FloatFormat.of(name).round(values)
        assert_same_values(found, rounded_by_codec(FloatFormat.of(name), values.numpy()))
        if NAMED[name] is dtype:
            assert_same_values(found, values.numpy())


@pytest.mark.parametrize("name", NAMED)
def test_every_float16_pattern_rounds_as_the_codec_says(name: str) -> None:
    values = patterns(np.arange(65536, dtype=np.uint16), np.float16)
    format = FloatFormat.of(name)
    wanted = rounded_by_codec(format, values.numpy())
    assert_same_values(format.round(values), wanted)
    if format.overflow == "inf":
        with np.errstate(over="ignore", invalid="ignore"):
            assert_same_values(
                format.round(values), values.numpy().astype(NAMED[name]).astype(np.float32)
            )


@pytest.mark.parametrize("name", ["fp16", "e5m2", "e4m3"])
def test_every_tie_between_float16_neighbors_goes_to_even(name: str) -> None:
    halves = np.arange(0x7BFF, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (halves[:-1] + halves[1:]) / 2
    values = np.concatenate([ties, -ties, np.nextafter(ties, np.float32(np.inf))])
    format = FloatFormat.of(name)
    assert_same_values(format.round(torch.from_numpy(values)), rounded_by_codec(format, values))


@settings(deadline=None, max_examples=60)
@given(formats(), st.integers(0, 2**32 - 1))
def test_any_format_rounds_as_the_codec_says(format: FloatFormat, seed: int) -> None:
    values = awkward_values(format, seed)
    assert_same_values(format.round(values), rounded_by_codec(format, values.numpy()))


@settings(deadline=None, max_examples=40)
@given(
    formats().filter(lambda format: format.exponent_bits < 8 and format.mantissa_bits < 23),
    st.integers(0, 2**32 - 1),
)
def test_rounding_by_addition_equals_rounding_by_quantum(format: FloatFormat, seed: int) -> None:
    values = awkward_values(format, seed)
    fast = format._apply_overflow(format._round_by_addition(values))
    slow = format._apply_overflow(format._round_by_quantum(values))
    torch.testing.assert_close(fast, slow, rtol=0, atol=0, equal_nan=True)


@settings(deadline=None, max_examples=30)
@given(formats(), st.integers(0, 2**32 - 1))
def test_rounding_twice_changes_nothing_more(format: FloatFormat, seed: int) -> None:
    once = format.round(awkward_values(format, seed))
    torch.testing.assert_close(format.round(once), once, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", LIMITS)
def test_the_limits_of_the_named_formats(name: str) -> None:
    format = FloatFormat.of(name)
    limits = format.max, format.smallest_normal, format.smallest_subnormal
    assert (*limits, format.overflow_threshold) == LIMITS[name]
    assert format.flush_threshold == format.smallest_subnormal / 2
    assert format.name == name
    assert FloatFormat.of(format) is format
    assert format.dtype is not None and FloatFormat.of(format.dtype) is format


@settings(deadline=None, max_examples=60)
@given(formats())
def test_the_name_of_a_format_leads_back_to_it(format: FloatFormat) -> None:
    assert FloatFormat.of(format.name) == format


@settings(deadline=None, max_examples=60)
@given(formats())
def test_the_limits_of_any_format_are_those_of_the_codec(format: FloatFormat) -> None:
    known = codec(format)
    assert format.max == known.max
    assert format.bias == known.bias
    assert format.smallest_subnormal == known.smallest_subnormal
    assert format.smallest_normal == known.smallest_normal
    assert 2.0**format.min_exponent == format.smallest_normal
    assert 2.0**format.max_exponent <= format.max < 2.0 ** (format.max_exponent + 1)


@settings(deadline=None, max_examples=60)
@given(formats())
def test_a_value_is_flushed_up_to_the_flush_threshold_and_no_further(format: FloatFormat) -> None:
    threshold = np.float32(format.flush_threshold)
    if threshold > 0:
        values = torch.tensor([threshold, np.nextafter(threshold, np.float32(1))])
        assert format.round(values).tolist() == [0.0, format.smallest_subnormal]


@settings(deadline=None, max_examples=60)
@given(formats())
def test_a_value_overflows_from_the_overflow_threshold_on(format: FloatFormat) -> None:
    with np.errstate(over="ignore"):
        threshold = np.float32(format.overflow_threshold)
    if float(threshold) < format.overflow_threshold:
        threshold = np.nextafter(threshold, np.float32(np.inf))
    kept, lost = format.round(torch.tensor([np.nextafter(threshold, np.float32(0)), threshold]))
    assert kept == format.max
    if format.overflow == "saturate":
        assert lost == format.max
    else:
        assert lost.isinf() if format.overflow == "inf" else lost.isnan()


def test_float16_overflows_at_65520_and_flushes_at_half_its_smallest_subnormal() -> None:
    values = torch.tensor([65519.0, 65520.0, -65520.0, 2.0**-24, 2.0**-25, 2.0**-25 * 1.001])
    wanted = torch.tensor([65504.0, torch.inf, -torch.inf, 2.0**-24, 0.0, 2.0**-24])
    assert torch.equal(FloatFormat.of("fp16").round(values), wanted)


def test_e4m3_saturates_whatever_the_cast_of_this_torch_does() -> None:
    values = torch.tensor([448.0, 464.0, 464.1, 1e30, torch.inf, -torch.inf, torch.nan])
    found = FloatFormat.of("e4m3").round(values)
    assert found[:6].tolist() == [448.0, 448.0, 448.0, 448.0, 448.0, -448.0]
    assert found[6].isnan()
    overflowing = FloatFormat(4, 3, overflow="nan", reserved=1).round(values)
    assert overflowing.isnan().tolist() == [False, False, True, True, True, True, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rounding_keeps_the_dtype_and_the_shape(dtype: torch.dtype) -> None:
    values = torch.linspace(-3, 3, 12, dtype=dtype).reshape(3, 4).t()
    for name in LIMITS:
        found = FloatFormat.of(name).round(values)
        assert found.dtype == dtype and found.shape == (4, 3)
        again = FloatFormat.of(name).round(values.float()).to(dtype)
        assert torch.equal(found, again)


def test_a_tensor_of_the_formats_own_dtype_is_returned_as_it_is() -> None:
    half = torch.ones(2, dtype=torch.float16)
    assert FloatFormat.of("fp16").round(half) is half
    assert FloatFormat.of("bf16").round(half) is not half
    assert FloatFormat(5, 10, overflow="saturate").round(half / 0).tolist() == [65504.0, 65504.0]


def test_scalars_empty_and_expanded_tensors_round() -> None:
    format = FloatFormat(4, 2)
    assert format.round(torch.tensor(1.1)) == 1.0
    assert format.round(torch.empty(0, 3)).shape == (0, 3)
    assert format.round(torch.tensor([1.1]).expand(2, 3)).tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((1, 3), r"`FloatFormat\(1, 3\)` must have 2 to 8 exponent bits"),
        ((5, 24), r"1 to 23 mantissa bits"),
        ((5, 2, "wrap"), r"overflow='wrap'.*'inf', 'nan' or 'saturate'"),
        ((5, 2, "inf", 4), r"reserved=4.*\[0, 4\)"),
        ((8, 3, "inf", 1), r"beyond float32.*fewer exponent bits"),
    ],
)
def test_an_impossible_format_is_refused(arguments: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FloatFormat(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("format", ["fp8", torch.int8, torch.float64])
def test_an_unknown_format_is_refused_with_those_that_exist(format: str | torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"not a known format.*fp16, e5m2, e4m3"):
        FloatFormat.of(format)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_only_floating_tensors_round(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="needs a floating-point tensor"):
        FloatFormat.of("fp16").round(torch.zeros(2, dtype=dtype))
