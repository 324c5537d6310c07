"""The formulas of adaptive loss scaling against published facts and golden vectors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscale.backward.measure_counts import count_into, moments_into
from gradscale.backward.measure_rows import empty_counts
from gradscale.backward.measurements import unscaled_counts
from gradscale.exponents import floor_exponent
from gradscale.plans.adaptive_rules import (
    OVERFLOW,
    UNDERFLOW,
    Bounds,
    Statistics,
    capped,
    fork_exponent,
    gradient_bounds,
    kappa,
    lognormal_bounds,
    product_bounds,
)


def element_wise_bounds(gradient, weight, fan):
    """The exact bounds over all products of two small tensors, of which one is not zero."""
    products = [abs(g * w) for g in gradient for w in weight if g * w != 0]
    return Bounds(UNDERFLOW / min(products), OVERFLOW / (max(products) * fan))


def statistics_of(tensor: torch.Tensor, log2_scale: int = 0) -> Statistics:
    rows, moments = empty_counts(1), torch.zeros(1, 4, dtype=torch.float64)
    count_into(rows[0], tensor)
    moments_into(moments[0], tensor)
    return Statistics.of(unscaled_counts(rows, [(1.0, 0)], moments)[0], log2_scale)


def with_moments(mean: float, std: float) -> Statistics:
    return statistics_of(torch.tensor([mean + std] * 8 + [mean - std] * 8))


def with_log_moments(mean: float, std: float, zeros: int = 5) -> Statistics:
    halves = [math.exp(mean + std)] * 8 + [-math.exp(mean - std)] * 8
    return statistics_of(torch.tensor(halves + [0.0] * zeros, dtype=torch.float64))


def alpha(raw: float) -> float:
    return 2.0 ** floor_exponent(raw)


close = lambda value: pytest.approx(value, rel=1e-4)  # noqa: E731


@pytest.mark.parametrize(
    ("threshold", "expected", "target"),
    [
        (1e-2, 1.25334695e-2, 4.787182e-6),
        (1e-3, 1.25331447e-3, 4.787306e-5),
        (1e-4, 1.25331414e-4, 4.787307e-4),
        (1e-5, 1.25331414e-5, 4.787307e-3),
    ],
    ids=["K1", "K2", "K3", "K4"],
)
def test_kappa(threshold: float, expected: float, target: float) -> None:
    assert kappa(threshold) == pytest.approx(expected, rel=1e-8)
    assert kappa(threshold) == pytest.approx(
        math.sqrt(2) * torch.special.erfinv(torch.tensor(threshold, dtype=torch.float64)).item()
    )
    assert pytest.approx(target, rel=1e-6) == UNDERFLOW / kappa(threshold)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1.23, 1), (0.23, 0.125), (1, 1), (0.99, 0.5), (2, 2)],
    ids=["PW1", "PW2", "PW3", "PW4", "PW5"],
)
def test_rounding_down_to_a_power_of_two(value: float, expected: float) -> None:
    assert alpha(value) == expected


@given(st.floats(1e-300, 1e300))
def test_rounding_down_is_exact_everywhere(value: float) -> None:
    assert 2.0 ** floor_exponent(value) <= value < 2.0 ** (floor_exponent(value) + 1)


@pytest.mark.parametrize(
    ("std", "threshold", "low", "raw", "factor"),
    [
        (1e-3, 1e-3, 0.0478731, 1, 1),
        (1e-5, 1e-3, 4.78731, 4.78731, 4),
        (1e-6, 1e-3, 47.8731, 47.8731, 32),
        (1e-7, 1e-3, 478.731, 478.731, 256),
        (1e-8, 1e-3, 4787.31, 4787.31, 4096),
        (1e-6, 1e-2, 4.78718, 4.78718, 4),
        (1e-6, 1e-4, 478.731, 478.731, 256),
        (1e-6, 1e-5, 4787.31, 4787.31, 4096),
        (1e5, 1e-3, 4.78731e-10, 0.65504, 0.5),
        (2e5, 1e-3, 2.39365e-10, 0.32752, 0.25),
    ],
    ids=[f"G{n}" for n in range(1, 11)],
)
def test_the_gradient_rule(
    std: float, threshold: float, low: float, raw: float, factor: float
) -> None:
    bounds = gradient_bounds(with_moments(0.0, std), threshold)
    assert (bounds.low, bounds.raw) == (close(low), close(raw))
    assert alpha(bounds.raw) == factor


def test_the_gradient_rule_leaves_a_tensor_of_zeros_alone() -> None:  # G11
    assert alpha(gradient_bounds(with_moments(0.0, 0.0), 1e-3).raw) == 1


V1, V3 = [False], [True]
TABLE = [
    ("W1", V1, 0, 1e-6, 0, 0.02, 4608, [65504, 6e4], 2393.65, 2393.65, None, 2048),
    ("W2", V3, 0, 1e-6, 0, 0.02, 4608, [65504, 6e4], 49.8678, 49.8678, None, 32),
    ("W3", V1, 0, 1e-7, 0, 0.05, 576, [65504, 6e4], 9574.61, 9574.61, None, 8192),
    ("W4", V3, 0, 1e-7, 0, 0.05, 576, [65504, 6e4], 564.189, 564.189, None, 512),
    ("W5", V1, 0, 1e-5, 0, 0.05, 576, [65504, 6e4], 95.7461, 95.7461, None, 64),
    ("W6", V3, 0, 1e-5, 0, 0.05, 576, [65504, 6e4], 5.64189, 5.64189, None, 4),
    ("W7", V1, 1e-6, 1e-6, 0.02, 0.02, 4608, [65504], 1196.83, 1196.83, None, 1024),
    ("W8", V3, 1e-6, 1e-6, 0.02, 0.02, 4608, [65504], 24.9339, 24.9339, None, 16),
    ("W9", V1, 0, 1, 0, 0.5, 4608, [65504], 9.57461e-5, 1, 28.4306, 1),
    ("W10", V1, 0, 1000, 0, 0.5, 4608, [65504], 9.57461e-8, 0.0284306, 0.0284306, 0.015625),
    ("W11", V1, 0, 1000, 0, 0.5, 4608, [6e4], 9.57461e-8, 0.0260417, 0.0260417, 0.015625),
    ("W12", V3, 0, 1000, 0, 0.5, 4608, [65504], 1.99471e-9, 0.0284306, 0.0284306, 0.015625),
]


@pytest.mark.parametrize("row", TABLE, ids=[row[0] for row in TABLE])
def test_the_product_and_output_rules(row: tuple) -> None:
    _, kinds, mg, sg, mw, sw, fan, limits, low, raw, up, factor = row
    for summed in kinds:
        for u_max in limits:
            bounds = product_bounds(
                with_moments(mg, sg), with_moments(mw, sw), fan, 1e-3, u_max, summed=summed
            )
            assert (bounds.low, bounds.raw) == (close(low), close(raw))
            assert up is None or bounds.up == close(up)
            assert alpha(bounds.raw) == factor


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("fan", [1, 4608])
def test_a_weight_of_zeros_changes_nothing(summed: bool, fan: int) -> None:  # W13
    zero = with_moments(0.0, 0.0)
    bounds = product_bounds(with_moments(0.0, 1e-6), zero, fan, 1e-3, summed=summed)
    assert alpha(bounds.raw) == 1


@pytest.mark.parametrize(
    ("mean", "std", "raw", "log2_raw", "exponent", "bounded"),
    [
        (-20, 3, 309209.9, 18.2382, 18, 15),
        (-18, 2, 1903.678, 10.8946, 10, 10),
        (-25, 4, 1.008780e9, 29.9100, 29, 15),
    ],
    ids=["L1", "L2", "L3"],
)
def test_the_lognormal_rule(
    mean: float, std: float, raw: float, log2_raw: float, exponent: int, bounded: int
) -> None:
    bounds = lognormal_bounds(with_log_moments(mean, std), 1e-3)
    assert bounds.low == bounds.raw == close(raw)
    assert bounds.up == close(OVERFLOW / math.exp(mean + std))
    assert math.log2(bounds.raw) == close(log2_raw)
    assert floor_exponent(bounds.raw) == exponent
    assert floor_exponent(capped(bounds.raw, 1.0, 65504, 65504)) == bounded


def test_the_lognormal_rule_leaves_a_tensor_of_zeros_alone() -> None:  # L4
    bounds = lognormal_bounds(statistics_of(torch.zeros(4)), 1e-3)
    assert bounds.raw == 1 and floor_exponent(capped(bounds.raw, 1.0, 65504, 65504)) == 0


def test_the_element_wise_rule() -> None:  # E1
    bounds = element_wise_bounds([1e-5], [1e-4], 1)
    assert bounds.low == close(60) and alpha(bounds.raw) == 32


@given(st.integers(0, 2**32 - 1), st.integers(-30, 5))
@settings(max_examples=30, deadline=None)
def test_the_product_rule_overflows_nothing_that_the_element_wise_one_keeps(
    seed: int, exponent: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(12, generator=generator) * 2.0**exponent
    w = torch.randn(12, generator=generator)
    exact = element_wise_bounds(g.tolist(), w.tolist(), 12)
    assert product_bounds(statistics_of(g), statistics_of(w), 12, 1e-3).up == close(exact.up)


@pytest.mark.parametrize(
    ("raw", "scale", "accumulated", "single", "limited", "factor"),
    [
        (2393.65, 1, 1024, 16, 16, 16),
        (2393.65, 1, 4096, 128, 128, 128),
        (47.87, 256, 1024, 16, 4, 4),
        (47.87, 2048, 1024, 16, 0.5, 0.5),
        (478.73, 1, 65504, 65504, 478.73, 256),
    ],
    ids=[f"CAP{n}" for n in range(1, 6)],
)
def test_caps(
    raw: float, scale: float, accumulated: float, single: float, limited: float, factor: float
) -> None:
    assert capped(raw, scale, single, accumulated) == limited
    assert alpha(capped(raw, scale, single, accumulated)) == factor
    assert capped(raw, scale) == raw


@pytest.mark.parametrize("bound_sum", [False, True])
@pytest.mark.parametrize(
    ("scales", "maxima", "target"),
    [
        ([1, 2], [3, 3], 2),
        ([65536, 2], [3, 3], 2),
        ([4, 1], [1, 10000], 4),
        ([4, 1], [1, 30000], 1),
        ([4, 2], [20000, 1], 4),
    ],
    ids=["F1", "F2", "F3", "F4", "F5"],
)
def test_forks(scales: list[float], maxima: list[float], target: float, bound_sum: bool) -> None:
    exponents = [floor_exponent(scale) for scale in scales]
    assert 2.0 ** fork_exponent(exponents, maxima, bound_sum=bound_sum) == target


def test_a_fork_bounds_the_sum_where_the_published_rule_bounds_the_branches() -> None:  # F6
    assert fork_exponent([0, 0], [60000, 40000], bound_sum=False) == 0
    assert fork_exponent([0, 0], [60000, 40000]) == -1


@given(
    branches=st.lists(st.tuples(st.integers(-30, 30), st.floats(1e-6, 6e4)), min_size=1, max_size=6)
)
@settings(deadline=None)
def test_a_fork_keeps_the_sum_finite_and_its_value(branches: list[tuple[int, float]]) -> None:
    exponents, maxima = zip(*branches, strict=True)
    target = fork_exponent(exponents, maxima)
    true = [math.ldexp(m, -e) for e, m in branches]
    moved = [math.ldexp(m, target - e) for e, m in branches]
    assert sum(moved) < OVERFLOW
    assert math.ldexp(sum(moved), -target) == sum(true)
    larger = [e for e in exponents if e > target]
    assert all(math.ldexp(sum(true), e) >= OVERFLOW for e in larger)


def test_a_fork_refuses_what_is_not_finite() -> None:
    with pytest.raises(ValueError, match="must be finite"):
        fork_exponent([0, 1], [1.0, math.inf])


@given(st.integers(-20, 20), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_statistics_at_a_scale_are_those_of_the_scaled_tensor(scale: int, seed: int) -> None:
    tensor = torch.randn(50, generator=torch.Generator().manual_seed(seed))
    moved, direct = statistics_of(tensor, scale), statistics_of(tensor * 2.0**scale)
    fields = ("mean", "std", "amax", "log_mean", "log_std")
    assert [getattr(moved, f) for f in fields] == pytest.approx(
        [getattr(direct, f) for f in fields], rel=1e-6, abs=1e-12 * 2.0**scale
    )
    assert moved.std == pytest.approx((tensor * 2.0**scale).double().std(correction=0).item())


def test_a_bound_below_one_is_only_ever_that_of_overflow() -> None:
    assert Bounds(1e-9, 7.0).raw == 1 and Bounds(1e-9, 0.5).raw == 0.5 and Bounds(9, 7.0).raw == 7
