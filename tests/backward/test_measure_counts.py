"""Counting in one pass against a slow and obvious count, for every dtype and layout."""

import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from gradscale.backward.measure_counts import count_into, moments_into, stored_values
from gradscale.backward.measure_rows import (
    AMAX,
    NONFINITE,
    OCTAVES,
    WIDTH,
    ZERO,
    count_by_torch,
    empty_counts,
)
from gradscale.histogram import MIN_OCTAVE
from interpreter import assert_equal_in_interpreter, needs_triton
from tensor_kinds import FLOAT_DTYPES, LAYOUTS

floats = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)


def reference_counts(values: list[float], ceil: bool = False) -> list[int]:
    row = [0] * WIDTH
    largest = 0.0
    for value in values:
        if not math.isfinite(value):
            row[NONFINITE] += 1
        elif value == 0:
            row[ZERO] += 1
        else:
            mantissa, exponent = math.frexp(abs(value))
            octave = exponent - 1 - (ceil and mantissa == 0.5)
            row[OCTAVES + max(octave, MIN_OCTAVE) - MIN_OCTAVE] += 1
            largest = max(largest, abs(value))
    row[AMAX] = struct.unpack("<i", struct.pack("<f", largest))[0]
    return row


def counts_of(*tensors: Tensor, ceil: bool = False) -> list[int]:
    rows = empty_counts(1)
    for tensor in tensors:
        count_into(rows[0], tensor, ceil=ceil)
    return rows[0].tolist()


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@given(values=st.lists(floats | st.sampled_from([1.0, 2.0**-149, 2.0**-126, 0.25]), max_size=40))
@settings(max_examples=40, deadline=None)
def test_counts_equal_the_reference(values: list[float], dtype: torch.dtype, ceil: bool) -> None:
    tensor = torch.tensor(values, dtype=torch.float32).to(dtype)
    expected = reference_counts(tensor.to(torch.float64).tolist(), ceil)
    assert counts_of(tensor, ceil=ceil) == expected


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("rare", [None, math.inf, math.nan, 2.0**-149, 2.0**-126, 2.0**127])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_large_tensors_on_the_host_are_counted_as_small_ones(
    dtype: torch.dtype, rare: float | None, ceil: bool
) -> None:
    values = torch.randn(5000) * torch.exp2(torch.randint(-30, 9, (5000,)).float())
    values[::7] = 0.0
    values[1::7] = torch.exp2(values[1::7].mul(4).round().clamp(-20, 6))
    if rare is not None:
        values[-1] = -rare
    tensor = values.to(dtype)
    quick, plain = empty_counts(1), empty_counts(1)
    for _ in range(2):
        count_into(quick[0], tensor, ceil=ceil)
        count_by_torch(plain[0], stored_values(tensor), ceil=ceil)
    assert torch.equal(quick, plain)
    assert counts_of(tensor, ceil=ceil) == reference_counts(tensor.double().tolist(), ceil)


@given(parts=st.lists(st.lists(floats, max_size=10), max_size=4))
@settings(max_examples=40, deadline=None)
def test_a_row_adds_up_over_tensors(parts: list[list[float]]) -> None:
    counted = counts_of(*(torch.tensor(part, dtype=torch.float32) for part in parts))
    assert counted == reference_counts([value for part in parts for value in part])


@pytest.mark.parametrize("view", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_any_layout_is_counted(view: object) -> None:
    tensor = view(torch.randn(4, 6, 5))  # type: ignore[operator]
    dense = (
        tensor
        if tensor.layout == torch.strided
        else tensor.values()
        if (tensor.layout == torch.sparse_csr)
        else tensor._values()
    )
    assert counts_of(tensor) == reference_counts(dense.reshape(-1).tolist())


def test_complex_numbers_are_counted_by_components() -> None:
    tensor = torch.randn(3, 4, dtype=torch.complex64)
    expected = reference_counts(torch.view_as_real(tensor).reshape(-1).tolist())
    assert counts_of(tensor) == expected == counts_of(tensor.conj())


def test_a_float64_beyond_float32_counts_as_finite() -> None:
    row = counts_of(torch.tensor([1e300], dtype=torch.float64))
    assert (row[NONFINITE], row[-1]) == (0, 1)


def test_counting_never_reads_the_tensor_on_the_host() -> None:
    with FakeTensorMode():
        rows = empty_counts(2)
        count_into(rows[0], torch.ones(3, 4, dtype=torch.float16).T)
        moments_into(torch.zeros(4, dtype=torch.float64), torch.ones(3))


@given(values=st.lists(floats, max_size=30))
@settings(max_examples=60, deadline=None)
def test_moments_equal_the_reference(values: list[float]) -> None:
    row = torch.zeros(4, dtype=torch.float64)
    moments_into(row, torch.tensor(values, dtype=torch.float32))
    finite = [value for value in values if math.isfinite(value)]
    logs = [math.log(abs(value)) for value in finite if value != 0]
    expected = [
        math.fsum(finite),
        math.fsum(value * value for value in finite),
        math.fsum(logs),
        math.fsum(value * value for value in logs),
    ]
    magnitude = max((abs(value) for value in finite), default=0.0)
    assert row[0].item() == pytest.approx(expected[0], rel=1e-9, abs=1e-12 * magnitude)
    assert row[1:].tolist() == pytest.approx(expected[1:], rel=1e-9, abs=1e-9)


IN_INTERPRETER = """
import torch
from gradscale.backward.measure_rows import count_by_torch, empty_counts
from gradscale.backward.measure_kernel import count_on_gpu
torch.manual_seed(0)
dtypes = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2]
for dtype in dtypes:
    for size in [1, 7, 4096, 70001]:
        tensor = (torch.randn(size) * torch.exp(12 * torch.randn(size))).to(dtype)
        single = tensor.to(torch.float32)
        single[::5] = 0.0
        single[3::11] = float("nan")
        single[4::13] = -float("inf")
        if dtype == torch.float32:
            single[5::17] = 2.0**-149 * 1000
        tensor = single.to(dtype)
        rows = empty_counts(2)
        count_by_torch(rows[0], tensor)
        count_on_gpu(rows[1], tensor)
        assert torch.equal(rows[0], rows[1]), (dtype, size, (rows[0] != rows[1]).nonzero())
        count_on_gpu(rows[1], tensor)
        assert torch.equal(rows[0][1:] * 2, rows[1][1:]) and rows[0][0] == rows[1][0]
        single[::6] = 0.25
        tensor, rows = single.to(dtype), empty_counts(2)
        count_by_torch(rows[0], tensor, ceil=True)
        count_on_gpu(rows[1], tensor, ceil=True)
        assert torch.equal(rows[0], rows[1]), (dtype, size, "ceil")
large = torch.tensor([1e300, 1.0], dtype=torch.float64)
rows = empty_counts(2)
count_by_torch(rows[0], large)
count_on_gpu(rows[1], large)
assert torch.equal(rows[0], rows[1])
print("equal")
"""


@needs_triton
def test_the_kernel_in_tritons_interpreter_equals_plain_torch() -> None:
    assert_equal_in_interpreter(IN_INTERPRETER)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_the_kernel_on_the_device_equals_plain_torch_on_the_host(dtype: torch.dtype) -> None:
    tensor = (torch.randn(300_001) * torch.exp(12 * torch.randn(300_001))).to(dtype)
    rows = empty_counts(1, "cuda")
    count_into(rows[0], tensor.cuda())
    assert rows[0].tolist() == counts_of(tensor)
