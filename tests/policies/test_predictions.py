"""What the policies that measure do with their measurements."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradscale.formats import FloatFormat
from gradscale.histogram import count_exponents
from gradscale.policies import (
    Band,
    Dynamic,
    Guarded,
    LastMaximum,
    LogNormal,
    Observation,
    Policy,
    Quantile,
    Static,
    TwoSided,
    presets,
)
from gradscale.policies.bits import ceil_log2, floor_log2, power_of_two
from gradscale.policies.placement import scale_under

MEASURING: list[type[Any]] = [LastMaximum, LogNormal, Quantile, Band]


def saw(amax: float, overflow: bool = False) -> Observation:
    return Observation(torch.tensor(float(overflow)), torch.tensor(amax))


def after(policy: Policy, *observations: Observation) -> Any:
    state = policy.init()
    for observation in observations:
        state = policy.update(state, observation)
    return state


# ---- exponents


@given(value=st.floats(2.0**-126, 2.0**127, width=32))
def test_exponents_read_from_the_bits_are_exact(value: float) -> None:
    mantissa, exponent = math.frexp(value)
    single = torch.tensor(value)
    assert int(floor_log2(single)) == exponent - 1
    assert int(ceil_log2(single)) == exponent - (mantissa == 0.5)
    assert power_of_two(floor_log2(single)).item() == 2.0 ** (exponent - 1)


@given(amax=st.floats(2.0**-140, 2.0**100, width=32), exponent=st.integers(-8, 15))
def test_the_scale_under_an_exponent_is_the_largest_that_fits(amax: float, exponent: int) -> None:
    scale = scale_under(torch.tensor(amax), exponent, 2.0**-126, 2.0**60).item()
    assert scale * amax <= 2.0**exponent or scale == 2.0**-126
    assert 2 * scale * amax > 2.0**exponent or scale == 2.0**60


# ---- what all of them share


@pytest.mark.parametrize("kind", MEASURING)
def test_a_step_of_zeros_changes_nothing(kind: type[Policy]) -> None:
    state = after(kind(), *[saw(0.3)] * 5)
    held = kind().update(state, saw(0.0))
    assert all(torch.equal(a, b) for a, b in zip(state, held, strict=True))


@pytest.mark.parametrize("kind", MEASURING)
@pytest.mark.parametrize("bad", [saw(0.3, True), saw(math.inf), saw(math.nan), saw(0.0, True)])
def test_an_overflow_or_a_maximum_that_is_not_finite_backs_off(
    kind: type[Policy], bad: Observation
) -> None:
    state = after(kind(), *[saw(0.3)] * 5)
    lowered = kind().update(state, bad)
    assert lowered.scale <= state.scale / 2
    assert all(torch.isfinite(field).all() for field in lowered[:2])


@pytest.mark.parametrize("kind", MEASURING)
def test_an_overflow_backs_off_from_a_cap_far_below_the_prediction(kind: type[Any]) -> None:
    policy = kind(max_scale=2.0**16)
    state = after(policy, *[saw(2.0**-30)] * 5)
    assert state.scale.item() == 2.0**16
    assert policy.update(state, saw(2.0**-30, overflow=True)).scale.item() <= 2.0**15


@pytest.mark.parametrize("kind", MEASURING)
@pytest.mark.parametrize("format", ["fp16", "e5m2", "e4m3"])
def test_a_steady_maximum_ends_inside_the_format(kind: type[Any], format: str) -> None:
    for amax in (1e-12, 0.3, 77.0):
        state = after(kind(format=format), *[saw(amax)] * 300)
        headroom = math.log2(FloatFormat.of(format).max / (state.scale.item() * amax))
        # Band may leave three octaves, the topmost one and what rounding to powers of two takes.
        assert 0 <= headroom < (5 if kind is Band else 4)


@pytest.mark.parametrize("kind", MEASURING)
def test_no_first_step_places_the_next_like_it_outside(kind: type[Policy]) -> None:
    assert after(kind(), saw(0.3)).scale * 0.3 <= 65504 / 2


# ---- LastMaximum


@pytest.mark.parametrize(
    ("amax", "headroom", "exponent"),
    [
        (1.0, 0, 15),
        (1.0, 1, 14),
        (1.0001, 0, 14),
        (0.25, 1, 16),
        (65504.0, 0, -1),
        (2.0**-20, 2, 33),
    ],
)
def test_last_maximum_is_claim_six_read_as_an_exponent(
    amax: float, headroom: int, exponent: int
) -> None:
    assert exponent == math.floor(15 - math.log2(amax) - headroom)
    assert after(LastMaximum(headroom=headroom), saw(amax)).scale.item() == 2.0**exponent


def test_last_maximum_keeps_to_its_bounds() -> None:
    policy = LastMaximum(min_scale=1.0, max_scale=2.0**17)
    assert after(policy, saw(1e-20)).scale.item() == 2.0**17
    assert after(policy, saw(1e20)).scale.item() == 1.0


# ---- Band


def test_band_rests_inside_and_moves_just_inside_from_outside() -> None:
    policy = Band(min_headroom=1, max_headroom=3, init_scale=2.0**14, decay=0.5)
    state = after(policy, saw(1.0))
    assert state.scale.item() == 2.0**14
    state = policy.update(state, saw(4.0))
    assert state.scale.item() == 2.0**12
    state = policy.update(state, saw(1.0))
    assert (state.scale.item(), state.maximum.item()) == (2.0**12, 2.0)
    for _ in range(10):
        state = policy.update(state, saw(2.0**-5))
    assert (state.scale.item(), state.maximum.item()) == (2.0**17, 2.0**-5)


# ---- LogNormal


def recovery(policy: LogNormal) -> int:
    """Steps that the scale spends below 2^14 after one forced overflow at step 3000 (spec 4.4)."""
    maxima = 2.0 ** np.random.default_rng(3).normal(-4, 0.5, 20_000)
    state = policy.init()
    for step, amax in enumerate(maxima.tolist()):
        state = policy.update(state, saw(amax, overflow=step == 3000))
        if step == 2999:
            assert state.scale.item() == 2.0**14
        if step > 3000 and state.scale.item() == 2.0**14:
            return step - 3000
    raise AssertionError("never recovered")


@pytest.mark.slow
def test_the_original_logmax_needs_14007_steps_after_one_overflow() -> None:
    assert recovery(presets.openseq2seq_logmax()) == pytest.approx(14_007, abs=2)


@pytest.mark.slow
def test_the_corrected_one_is_back_at_the_next_step() -> None:
    assert recovery(LogNormal(init_scale=1.0, min_scale=1.0, max_scale=2.0**14)) == 1


def test_lognormal_moments_are_the_bias_corrected_ones() -> None:
    logs = np.random.default_rng(0).normal(-4, 1.5, 300)
    policy = LogNormal()
    state = after(policy, *[saw(2.0**x) for x in logs.tolist()])
    weights = 0.999 ** np.arange(len(logs))[::-1]
    mean = np.average(logs, weights=weights)
    assert state.slow_mean.item() == pytest.approx(mean, rel=1e-4)
    variance = np.average((logs - mean) ** 2, weights=weights)
    assert state.variance.item() == pytest.approx(variance, rel=1e-3)
    fast = np.average(logs, weights=0.99 ** np.arange(len(logs))[::-1])
    assert state.mean.item() == pytest.approx(fast, rel=1e-4)


def overflow_share(policy: Policy, logs: Tensor, warm_up: int = 5_000) -> float:
    """The share of overflowing steps after a warm-up; `logs` are of shape `(steps, losses)`."""
    state = policy.init((logs.shape[1],))
    overflows = 0.0
    for step, amax in enumerate(torch.exp2(logs)):
        found = (state.scale * amax > 65504).to(torch.float32)
        overflows += found.sum().item() if step >= warm_up else 0.0
        state = policy.update(state, Observation(found, amax))
    return overflows / ((len(logs) - warm_up) * logs.shape[1])


def log_normal(losses: int = 96) -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(-4, 1.5, (7_000, losses))).float()


def heavy_tailed(losses: int = 96) -> Tensor:
    """Student-t with 3 degrees of freedom, brought to the same deviation of 1.5."""
    draws = np.random.default_rng(2).standard_t(3, (7_000, losses))
    return torch.from_numpy(-4 + 1.5 * draws / math.sqrt(3)).float()


@pytest.mark.slow
def test_heavy_tails_break_the_lognormal_promise_and_the_quantile_keeps_it() -> None:
    lognormal = LogNormal(power_of_two=False)
    assert overflow_share(lognormal, log_normal()) <= 1e-3
    assert overflow_share(lognormal, heavy_tailed()) > 5e-3
    assert overflow_share(Quantile(power_of_two=False), heavy_tailed()) <= 1e-3
    assert overflow_share(Quantile(), heavy_tailed()) <= 1e-3


# ---- Quantile


@given(st.lists(st.floats(-20, 10, width=16), min_size=19, max_size=60))
def test_quantile_takes_the_order_statistic_of_the_last_window(logs: list[float]) -> None:
    policy = Quantile(overflow_share=0.1, window=19, power_of_two=False)
    state = after(policy, *[saw(2.0**x) for x in logs])
    second = sorted(logs[-19:])[-2]
    assert math.log2(state.scale.item()) == pytest.approx(math.log2(65504) - second, abs=1e-4)


def test_quantile_leaves_room_until_it_has_seen_enough() -> None:
    policy = Quantile(overflow_share=0.25, window=7, power_of_two=False)
    rooms = [
        math.log2(65504 / after(policy, *[saw(1.0)] * count).scale.item()) for count in range(1, 5)
    ]
    assert rooms == pytest.approx([1.5, 0.75, 0.0, 0.0], abs=1e-4)


# ---- TwoSided


def histogram(*exponents: int) -> Observation:
    counts = count_exponents(torch.tensor([2.0**e for e in exponents]))
    return Observation(torch.tensor(0.0), exponents=counts)


@pytest.mark.parametrize(
    ("exponents", "scale"),
    [
        ((12, -10), 1.0),  # nothing lost, nothing in the upper three octaves
        ((13, -10), 0.5),  # before an overflow
        ((11, -15), 2.0),  # a subnormal
        ((11, -30), 2.0),  # flushed
        ((12, -30), 1.0),  # lost, but doubling would fill the upper octaves
        ((), 1.0),
    ],
)
def test_two_sided_looks_at_both_ends(exponents: tuple[int, ...], scale: float) -> None:
    assert after(TwoSided(init_scale=1.0), histogram(*exponents)).scale.item() == scale


def test_two_sided_halves_on_overflow_whatever_the_histogram_says() -> None:
    seen = histogram(-30)._replace(found_inf=torch.tensor(1.0))
    assert after(TwoSided(init_scale=1.0), seen).scale.item() == 0.5


# ---- Guarded


def test_a_guard_holds_the_scale_down_where_amax_cannot_see_the_overflow() -> None:
    limit, steps = 2.0**10, 2_000  # overflows inside the backward pass above this scale

    def skipped(policy: Policy) -> int:
        state, count = policy.init(), 0
        for _ in range(steps):
            overflow = bool(state.scale > limit)
            count += overflow
            state = policy.update(state, saw(1e-3, overflow))
        return count

    assert skipped(LastMaximum()) > steps / 2
    assert skipped(Guarded(LastMaximum())) <= 6 + steps / 200


def test_a_guard_that_grew_far_above_its_policy_comes_down_with_the_first_overflow() -> None:
    policy = Guarded(LastMaximum(), Dynamic(growth_interval=1))
    state = after(policy, *[saw(1.0)] * 30)
    assert (state.scale.item(), state.guard_scale.item()) == (2.0**14, 2.0**46)
    state = policy.update(state, saw(1.0, overflow=True))
    assert state.guard_scale.item() == 2.0**13


def test_a_guards_state_pickles_in_a_flat_tuple() -> None:
    state = Guarded(Quantile()).init((2,))
    assert state._fields[:2] == ("scale", "guard_scale")
    again = pickle.loads(pickle.dumps(state))
    assert again._fields == state._fields
    assert type(again._replace(scale=state.scale)) is type(state)


# ---- settings


@pytest.mark.parametrize("kind", [*MEASURING, TwoSided])
@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("format", "fp17", r"\(format='fp17'\)` must be a number format.*Pass one of"),
        ("init_scale", 3.0, r"\(init_scale=3.0\)` must be a power of two.*the same bits"),
        ("min_scale", 0.0, r"\(min_scale=0.0\)` must be a finite number.*flushed"),
        ("max_scale", 1.0, r"must lie between `min_scale`.*Move it"),
    ],
)
def test_every_measuring_policy_checks_its_range(
    kind: type[Any], setting: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**{setting: value})


@pytest.mark.parametrize("kind", [*MEASURING, TwoSided])
def test_every_measuring_policy_wants_a_cap(kind: type[Any]) -> None:
    with pytest.raises(TypeError, match=rf"`{kind.__name__}\(max_scale=None\)` must be a number"):
        kind(max_scale=None)


@pytest.mark.parametrize(
    ("kind", "setting", "value", "message"),
    [
        (LastMaximum, "headroom", -1, r"must be at least 0.*Pass 0"),
        (LastMaximum, "backoff_factor", 0.7, r"must be a power of two"),
        (LastMaximum, "backoff_factor", 1.0, r"must lie strictly between 0 and 1.*`Static`"),
        (LogNormal, "headroom", -1.0, r"must be finite and at least 0.*no extra room"),
        (LogNormal, "deviations", math.inf, r"must be finite and at least 0"),
        (LogNormal, "mean_decay", 1.0, r"must lie strictly between 0 and 1.*more steps"),
        (LogNormal, "deviation_decay", 0.0, r"must lie strictly between 0 and 1.*more steps"),
        (Quantile, "headroom", math.nan, r"must be finite and at least 0"),
        (
            Quantile,
            "overflow_share",
            0.0,
            r"must lie strictly between 0 and 1.*one step in a thousand",
        ),
        (Quantile, "window", 500, r"must be at least 1 / overflow_share - 1 = 999.*raise `overf"),
        (Quantile, "window", 0, r"must be at least 1 "),
        (Band, "max_headroom", 0, r"must be at least `min_headroom` \(1\).*widen the band"),
        (Band, "decay", 1.0, r"must lie strictly between 0 and 1.*`LastMaximum`"),
        (TwoSided, "upper_octaves", 0, r"must be at least 1.*half-open"),
        (TwoSided, "upper_share", 1.0, r"must lie in \[0, 1\).*Pass 0"),
        (TwoSided, "lost_share", -0.1, r"must lie in \[0, 1\).*Pass None"),
        (Static, "scale", 0.0, r"must be a finite number of at least 2\*\*-126.*pass 1"),
        (Static, "scale", math.nan, r"must be a finite number"),
    ],
)
def test_a_setting_out_of_range_is_refused(
    kind: type[Any], setting: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"`{kind.__name__}\({setting}=.*\)` {message}"):
        kind(**{setting: value})


@pytest.mark.parametrize(
    ("kind", "settings", "error", "message"),
    [
        (Static, {"scale": "1"}, TypeError, r"`Static\(scale='1'\)` must be a number, not str"),
        (LogNormal, {"compat": 1}, TypeError, r"`LogNormal\(compat=1\)` must be a bool.*True or"),
        (LogNormal, {"power_of_two": None}, TypeError, r"must be a bool, not NoneType"),
        (LastMaximum, {"headroom": 0.5}, TypeError, r"must be an int, not float.*whole number"),
        (Guarded, {"policy": 3}, TypeError, r"`Guarded\(policy=3\)` must be a policy.*LogNormal"),
        (Guarded, {"policy": Guarded(Static(1))}, ValueError, r"not be guarded already.*inner"),
        (Guarded, {"policy": Static(1), "guard": 2}, TypeError, r"must be a `Dynamic`, not int"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_refused(
    kind: type[Any], settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        kind(**settings)


def test_a_guard_is_a_dynamic_with_a_short_interval_by_default() -> None:
    assert Guarded(Static(1.0)).guard == Dynamic(growth_interval=200)
