"""What is peculiar to `Dynamic`: equality with torch's kernel, the in-place twin, its settings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from gradscale.policies import Dynamic, Observation, advance
from gradscale.policies.product import rounded_product

flags = st.lists(st.sampled_from([0.0, 0.0, 0.0, 1.0]), min_size=1, max_size=80)
factors = st.floats(1.0001, 50.0)
backoffs = st.floats(0.01, 0.999)


def run_torch(policy: Dynamic, found: list[float]) -> list[tuple[float, int]]:
    scale, tracker = torch.tensor(policy.init_scale), torch.zeros((), dtype=torch.int32)
    trace: list[tuple[float, int]] = []
    for flag in found:
        torch._amp_update_scale_(
            scale,
            tracker,
            torch.tensor(flag),
            policy.growth_factor,
            policy.backoff_factor,
            policy.growth_interval,
        )
        trace.append((scale.item(), int(tracker)))
    return trace


def run(policy: Dynamic, found: list[float]) -> list[tuple[float, int]]:
    state, trace = policy.init(), []
    for flag in found:
        state = policy.update(state, Observation(torch.tensor(flag)))
        trace.append((state.scale.item(), int(state.growth_tracker)))
    return trace


@given(
    found=flags,
    init=st.floats(2.0**-20, 2.0**127, width=32),
    growth=st.one_of(st.just(2.0), factors),
    backoff=st.one_of(st.just(0.5), backoffs),
    interval=st.integers(1, 5),
)
def test_the_default_equals_torchs_kernel_bit_for_bit(
    found: list[float], init: float, growth: float, backoff: float, interval: int
) -> None:
    policy = Dynamic(init, growth, backoff, interval)
    expected = run_torch(policy, found)
    # Below the normal numbers torch goes on to 0; there we differ on purpose.
    assume(min(scale for scale, _ in expected) >= 2.0**-126)
    assert run(policy, found) == expected


def test_dynamic_grows_after_2000_clean_steps_like_torch() -> None:
    found = [0.0] * 4001 + [1.0] + [0.0] * 2001
    assert run(Dynamic(), found) == run_torch(Dynamic(), found)


@given(found=flags, ignored=flags, fast=st.booleans(), cap=st.sampled_from([None, 2.0**18]))
def test_update_in_place_equals_advance(
    found: list[float], ignored: list[float], fast: bool, cap: float | None
) -> None:
    policy = Dynamic(
        growth_factor=1.7, growth_interval=2, min_scale=100.0, max_scale=cap, hysteresis=2 - fast
    )
    assert policy.fast is fast
    slow, state = policy.init(), policy.init()
    tensors = list(state)
    for index, flag in enumerate(found):
        ignore = torch.tensor(ignored[index % len(ignored)]) if index % 3 else None
        slow = advance(policy, slow, Observation(torch.tensor(flag)), ignore)
        shown = torch.tensor(flag if ignore is None or ignore == 0 else 0.0)
        policy.update_(state, Observation(shown), ignore)
        assert all(torch.equal(a, b) for a, b in zip(slow, state, strict=True))
    assert all(a is b for a, b in zip(tensors, state, strict=True))


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_update_in_place_takes_any_shape(shape: tuple[int, ...]) -> None:
    policy = Dynamic(growth_interval=1)
    state = policy.init(shape)
    found = torch.zeros(shape)
    policy.update_(state, Observation(found))
    assert torch.equal(state.scale, torch.full(shape, 2.0**17))
    policy.update_(state, Observation(found), ignore=found + 1)
    assert torch.equal(state.scale, torch.full(shape, 2.0**17))
    assert found.eq(0).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"hysteresis": 2},
        {"tolerance": 0.1},
        {"window_follows_scale": True},
        {"max_scale": torch.finfo(torch.float32).max},
    ],
)
def test_fast_says_where_torchs_kernel_does_something_else(settings: dict[str, Any]) -> None:
    assert Dynamic().fast and Dynamic(max_scale=2.0**24).fast
    assert not Dynamic(**settings).fast


def test_the_scale_never_falls_below_the_smallest_normal_number() -> None:
    policy = Dynamic()
    state = policy.init()
    for _ in range(200):
        policy.update_(state, Observation(torch.tensor(1.0)))
    assert state.scale.item() == 2.0**-126
    assert run(policy, [1.0] * 200)[-1][0] == 2.0**-126


def test_growth_beyond_float32_is_refused_but_restarts_the_interval() -> None:
    assert run(Dynamic(2.0**127, growth_interval=2), [0.0] * 2) == [(2.0**127, 1), (2.0**127, 0)]


def test_an_interval_that_was_shortened_below_the_tracker_grows_at_once() -> None:
    state = Dynamic().init()._replace(growth_tracker=torch.tensor(500, dtype=torch.int32))
    state = Dynamic(growth_interval=100).update(state, Observation(torch.tensor(0.0)))
    assert (state.scale.item(), int(state.growth_tracker)) == (2.0**17, 0)


@given(scale=st.floats(2.0**-100, 2.0**100, width=32), factor=st.floats(2.0**-7, 100.0, width=32))
def test_a_float32_factor_needs_no_float64(scale: float, factor: float) -> None:
    single = torch.tensor(scale)
    exact = (single.double() * factor).float()
    assert torch.equal(single * factor, exact)
    assert torch.equal(rounded_product(single, factor), exact)


@given(scale=st.floats(2.0**-100, 2.0**100, width=32), factor=st.floats(0.01, 100))
def test_times_rounds_once_from_float64(scale: float, factor: float) -> None:
    expected = torch.tensor(scale * factor, dtype=torch.float64).float()
    assert torch.equal(rounded_product(torch.tensor(scale), factor), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"growth_factor": 0.5}, r"`Dynamic\(growth_factor=0.5\)` must be .*above 1.*`backoff_f"),
        ({"growth_factor": math.inf}, r"`Dynamic\(growth_factor=inf\)` must be finite"),
        ({"growth_factor": math.nan}, r"`Dynamic\(growth_factor=nan\)` must be finite"),
        ({"backoff_factor": 0.0}, r"`Dynamic\(backoff_factor=0.0\)` must lie strictly.*`Static`"),
        ({"backoff_factor": -1.0}, r"`Dynamic\(backoff_factor=-1.0\)` must lie strictly"),
        ({"backoff_factor": 1.0}, r"`Dynamic\(backoff_factor=1.0\)` must lie strictly"),
        ({"growth_interval": 0}, r"`Dynamic\(growth_interval=0\)` must be at least 1.*max_scale"),
        ({"init_scale": 0.0}, r"`Dynamic\(init_scale=0.0\)` must be a finite.*Pass a scale"),
        ({"init_scale": -1.0}, r"`Dynamic\(init_scale=-1.0\)` must be a finite"),
        ({"init_scale": math.nan}, r"`Dynamic\(init_scale=nan\)` must be a finite"),
        ({"init_scale": math.inf}, r"`Dynamic\(init_scale=inf\)` must be a finite"),
        ({"max_scale": 2.0}, r"`Dynamic\(init_scale=65536.0\)` .*`max_scale` \(2.0\).*Move it"),
        ({"max_scale": math.inf}, r"`Dynamic\(max_scale=inf\)` must be a finite float32.*Raise"),
        ({"min_scale": 0.0}, r"`Dynamic\(min_scale=0.0\)` must be a finite .*2\*\*-126.*flushed"),
        ({"min_scale": 2.0**-127}, r"`Dynamic\(min_scale=5.877.*\)` must be a finite"),
        ({"hysteresis": 0}, r"`Dynamic\(hysteresis=0\)` must be at least 1.*Pass 1"),
        (
            {"hysteresis_refill": "never"},
            r"`Dynamic\(hysteresis_refill='never'\)` must be 'growth'",
        ),
        ({"tolerance": 1.0}, r"`Dynamic\(tolerance=1.0\)` must lie in \[0, 1\).*Pass 0"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Dynamic(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_scale": "2"}, r"`Dynamic\(init_scale='2'\)` must be a number, not str.*float"),
        ({"init_scale": torch.tensor(2.0)}, r"must be a number, not Tensor.*no tensor on the host"),
        ({"growth_factor": True}, r"`Dynamic\(growth_factor=True\)` must be a number, not bool"),
        ({"growth_interval": 2.5}, r"`Dynamic\(growth_interval=2.5\)` must be an int.*whole"),
        ({"growth_interval": True}, r"must be an int, not bool"),
        (
            {"window_follows_scale": 1},
            r"`Dynamic\(window_follows_scale=1\)` must be a bool, not int",
        ),
    ],
)
def test_a_setting_of_the_wrong_kind_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Dynamic(**settings)
