"""A sample of a large tensor: the largest of all elements, and shares as the whole has them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gradscale.backward.graph import walk
from gradscale.backward.measure import measure
from gradscale.backward.measure_places import places_of
from gradscale.backward.measure_rows import (
    AMAX,
    NONFINITE,
    OCTAVES,
    ZERO,
    count_by_torch,
    empty_counts,
)
from gradscale.backward.measure_sample import ENOUGH, Sample, apart, count_samples
from gradscale.backward.measurements import Measurements

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
LARGE = 40 * ENOUGH


def exact(tensor: Tensor) -> Tensor:
    row = empty_counts(1)[0]
    count_by_torch(row, tensor.reshape(-1))
    return row


def sampled(tensor: Tensor) -> Tensor:
    sample = Sample.of(tensor)
    assert sample is not None
    return count_samples([sample])[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exponent", [0, -12, -22])
def test_shares_are_those_of_the_whole(dtype: torch.dtype, exponent: int) -> None:
    torch.manual_seed(0)
    x = (torch.randn(LARGE) * 2.0**exponent * (torch.rand(LARGE) < 0.7)).to(dtype)
    whole, part = exact(x), sampled(x)
    assert part[AMAX] == whole[AMAX]
    assert part[NONFINITE] == 0
    step = apart(LARGE)
    assert abs(int(part[ZERO:].sum()) - LARGE) <= step
    # Four standard deviations of a binomial count, and one element more.
    drawn = LARGE / step
    for mine, true in zip(part[ZERO:].tolist(), whole[ZERO:].tolist(), strict=True):
        share = true / LARGE
        bound = 4 * math.sqrt(drawn * share * (1 - share)) + 1
        assert abs(mine / step - drawn * share) <= bound


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_smaller_tensor_is_counted_whole(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(3 * ENOUGH - 1).to(dtype)
    assert torch.equal(sampled(x), exact(x))


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4).filter(
        lambda shape: math.prod(shape) * 16 >= 3
    ),
    st.integers(0, 3),
)
def test_every_place_along_every_dimension_is_met_equally_often(
    shape: list[int], axis: int
) -> None:
    shape = [2 * ENOUGH, *shape]
    axis = axis % len(shape)
    numel = math.prod(shape)
    step = apart(numel)
    inner = math.prod(shape[axis + 1 :])
    places = torch.arange(0, numel, step) // inner % shape[axis]
    if step > 1 and shape[axis] <= 40 and inner <= 40:
        met = torch.bincount(places, minlength=shape[axis])
        assert met.max() - met.min() <= 0.1 * len(places) / shape[axis] + 2 * inner


def test_zeros_of_either_sign_are_zeros() -> None:
    x = torch.zeros(ENOUGH)
    assert torch.equal(sampled(-x), exact(x))
    x[::2] = -1.0
    assert torch.equal(sampled(-x), exact(x))


def test_the_one_large_element_is_never_missed() -> None:
    x = torch.full((LARGE,), 2.0**-20, dtype=torch.float16)
    x[1] = -3.0
    row = sampled(x)
    assert row[AMAX] == exact(x)[AMAX]
    assert row[OCTAVES + 149 + 1] == 1


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_or_nearly_all_zero_is_no_case_for_a_sample(bad: float) -> None:
    x = torch.randn(LARGE)
    x[2] = bad
    assert Sample.of(x) is None
    assert Sample.of(x.nan_to_num(0, 0, 0)) is not None
    few = torch.zeros(LARGE)
    few[:9] = 1.0
    assert Sample.of(few) is None


def test_no_gap_of_a_view_is_counted() -> None:
    x = torch.ones(2, LARGE)
    assert Sample.of(x[:, ::2]) is None
    assert Sample.of(x[:, :1].expand(2, LARGE)) is None
    permuted = torch.randn(8, 100, 100).permute(1, 2, 0)
    assert torch.equal(sampled(permuted), sampled(permuted.permute(2, 0, 1)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_float32_holds_as_subnormals_is_counted(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(3 * ENOUGH - 1) * 2.0**-129).to(dtype)
    assert torch.equal(sampled(x), exact(x))


class _Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(32, 512), nn.Linear(512, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x)))


def _measured(times: int, *, whole: bool) -> Measurements:
    torch.manual_seed(0)
    model, measuring = _Wide().half(), None
    for _ in range(times):
        loss = model(torch.randn(2048, 32).half()).float().square().mean()
        walked = walk(loss)
        if measuring is None:
            places = places_of(walked.graph, [0] * len(walked.graph)) if whole else None
            measuring = measure(walked, scale=2.0**12, places=places)
        else:
            measuring.attach(walked)
        (loss * 2.0**12).backward()
    assert measuring is not None
    return measuring.result()


@pytest.mark.parametrize("times", [1, 2])
def test_a_planner_sees_the_same_maxima_and_as_many_elements(times: int) -> None:
    parts, wholes = _measured(times, whole=False), _measured(times, whole=True)
    assert len(parts.records) == len(wholes.records)
    sampled_some = False
    for part, whole in zip(parts.records, wholes.records, strict=True):
        assert part.place == whole.place
        assert part.counts.amax == whole.counts.amax
        assert part.counts.numel == pytest.approx(whole.counts.numel, rel=1e-3)
        assert part.counts.zero == pytest.approx(whole.counts.zero, rel=0.05, abs=50)
        sampled_some |= part.counts.zero != whole.counts.zero
    assert sampled_some
