"""A sample of a large tensor: the largest of all elements, and shares as the whole has them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
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
from gradscale.backward.measure_sample import ENOUGH, Sample, count_samples, drawn
from gradscale.backward.measurements import Measurements
from gradscale.plans import Adaptive, Excluding, Windows
from gradscale.plans.window import Window
from gradscale.plans.windows_nodes import node_windows

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


def near(part: Tensor, whole: Tensor) -> None:
    """Four standard deviations of a binomial count, and one element more."""
    numel = int(whole[ZERO:].sum())
    for mine, true in zip(part[ZERO:].tolist(), whole[ZERO:].tolist(), strict=True):
        share = true / numel
        bound = 4 * math.sqrt(ENOUGH * share * (1 - share)) + 1
        assert abs(mine / numel - share) * ENOUGH <= bound


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exponent", [0, -3])
def test_shares_are_those_of_the_whole(dtype: torch.dtype, exponent: int) -> None:
    torch.manual_seed(0)
    magnitude = torch.randn(LARGE).abs() + 2.0**-14
    x = (magnitude * 2.0**exponent * (torch.rand(LARGE) < 0.7)).to(dtype)
    whole, part = exact(x), sampled(x)
    assert part[AMAX] == whole[AMAX]
    assert part[NONFINITE] == 0
    assert abs(int(part[ZERO:].sum()) - LARGE) <= len(part)
    near(part, whole)


def layouts() -> dict[str, Tensor]:
    """Gradients of which one half is far smaller than the other, each in a way of its own."""
    torch.manual_seed(0)
    heads = torch.randn(8, 8, 256, 256)
    heads[:, 1::2] *= 2.0**-14
    padded = torch.randn(16, 512, 16, 32)
    padded[:, 256:] = 0
    padded[:, :, 4:8] *= 2.0**-14
    padded[:, :, 12:] *= 2.0**-14
    rows = torch.randn(1024, 1024)
    rows[512:] *= 2.0**-14
    stripes = torch.randn(2**20)
    stripes[1::2] *= 2.0**-14
    channels = torch.randn(16, 60, 31, 33).contiguous(memory_format=torch.channels_last)
    channels[:, ::2] *= 2.0**-14
    board = torch.randn(1000, 1000)
    i, j = torch.meshgrid(torch.arange(1000), torch.arange(1000), indexing="ij")
    board[(i + j) % 2 == 0] *= 2.0**-14
    return {
        "causal heads": heads.tril(), "padding": padded, "rows": rows, "stripes": stripes,
        "channels last": channels, "chessboard": board,
    }  # fmt: skip


@pytest.mark.parametrize("name", list(layouts()))
def test_no_layout_beats_against_the_sample(name: str) -> None:
    x = layouts()[name]
    near(sampled(x), exact(x))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("log2_scale", [6, 7, 8, 9, 10, 14])
def test_a_relu_in_float16_is_given_a_window_in_which_little_is_lost(
    seed: int, log2_scale: int
) -> None:
    found: list[Window] = []
    for some in (False, True):
        torch.manual_seed(seed)
        x = torch.randn(1024, 256).half().requires_grad_()
        above = torch.randn(1024, 256) * 2.0**-18
        loss = (torch.relu(x * 1).float() * above).sum()
        walked = walk(loss)
        measuring = measure(walked, scale=2.0**log2_scale, sampled=some)
        (loss * 2.0**log2_scale).backward()
        windows = node_windows(walked.graph, measuring.result(), flushed=1e-3, headroom=4)
        found.append(windows[walked.graph.names.index("ReluBackward0")])
    whole, part = found
    # What counting all of them makes of a stray element at the very end may be a tail without end.
    assert part.lo <= whole.lo + 1
    assert part.hi <= whole.hi
    true = above[x > 0].abs()
    assert (true * 2.0**part.lo <= 2.0**-25).double().mean() <= 2e-3


@given(st.integers(3 * ENOUGH, 2**40))
@settings(max_examples=50, deadline=None)
def test_one_element_of_each_stretch_is_drawn(numel: int) -> None:
    places = drawn(numel).to(torch.float64) / (numel / ENOUGH)
    # Whole numbers of elements: a place may lie one in front of where its stretch begins.
    stretches = torch.arange(ENOUGH, dtype=torch.float64)
    assert (places > stretches - ENOUGH / numel - 1e-6).all()
    assert (places < stretches + 1).all()
    assert drawn(numel)[-1] < numel


def test_the_default_dtype_is_nobodys_business() -> None:
    x = torch.randn(LARGE)
    expected = sampled(x)
    torch.set_default_dtype(torch.float64)
    try:
        drawn.cache_clear()
        assert torch.equal(sampled(x), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_zeros_of_either_sign_are_zeros() -> None:
    x = torch.zeros(ENOUGH)
    assert torch.equal(sampled(-x), exact(x))
    x[::2] = -1.0
    assert torch.equal(sampled(-x), exact(x))


def test_the_one_large_element_is_never_missed() -> None:
    x = torch.full((LARGE,), 2.0**-10, dtype=torch.float16)
    x[1] = -3.0
    row = sampled(x)
    assert row[AMAX] == exact(x)[AMAX]
    assert row[OCTAVES + 149 + 1] == 1


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_or_mostly_zero_or_partly_lost_is_no_case_for_a_sample(
    bad: float,
) -> None:
    x = torch.randn(LARGE)
    x[2] = bad
    assert Sample.of(x) is None
    assert Sample.of(x.nan_to_num(0, 0, 0)) is not None
    few = torch.zeros(LARGE)
    few[: LARGE // 5] = 1.0
    assert Sample.of(few) is None
    assert Sample.of(torch.randn(LARGE).half() * 2.0**-20) is None


def test_windows_of_a_finer_share_and_planners_of_others_see_every_element() -> None:
    assert Windows().sampled and not Windows(flushed=0).sampled
    assert Excluding(Windows(), ["head"]).sampled
    assert not Excluding(Windows(flushed=1e-4), ["head"]).sampled
    assert not Excluding(Adaptive(), ["head"]).sampled


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
        loss = model(torch.randn(2048, 32).half()).float().square().sum()
        walked = walk(loss)
        if measuring is None:
            places = places_of(walked.graph, [0] * len(walked.graph)) if whole else None
            measuring = measure(walked, scale=2.0**12, places=places, sampled=True)
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
