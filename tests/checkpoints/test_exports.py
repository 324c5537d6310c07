"""A state goes to another system and back; whatever does not survive has been reported."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradscale.checkpoints import (
    SYSTEMS,
    Exported,
    ScalerSettings,
    ScalerState,
    export_state,
    read_state,
)


def maybe(values: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | values


powers = st.integers(-100, 100).map(lambda k: 2.0**k)
settings = st.builds(
    ScalerSettings,
    dynamic=maybe(st.booleans()),
    growth_factor=maybe(st.sampled_from([1.5, 2.0, 4.0])),
    backoff_factor=maybe(st.sampled_from([0.25, 0.5, 0.75])),
    growth_interval=maybe(st.integers(50, 4000)),
    hysteresis=maybe(st.integers(1, 5)),
    hysteresis_refill=maybe(st.sampled_from(["growth", "clean", "clean_or_backoff"])),
    min_scale=maybe(powers),
    max_scale=maybe(powers),
)
states = st.builds(
    ScalerState,
    scale=powers,
    good_steps=maybe(st.integers(0, 49)),
    hysteresis_left=maybe(st.integers(1, 5)),
    settings=settings,
)


@pytest.mark.parametrize("target", SYSTEMS)
@given(state=states)
def test_everything_known_comes_back_or_is_reported(target: str, state: ScalerState) -> None:
    exported = export_state(state, target)
    back = read_state(exported.state, source=target).flat()
    neutral = {"hysteresis": 1, "hysteresis_left": 1}
    for name, value in state.flat().items():
        if name in exported.left_out:
            continue
        if name == "min_scale" and target == "flax":  # the floor that flax always has
            assert value == 2.0**-126
        elif name == "hysteresis_refill" and state.flat().get("hysteresis", 1) == 1:
            continue  # which step restores a hysteresis of one is the same thing
        else:
            assert back.get(name, neutral.get(name, name == "dynamic")) == value


@pytest.mark.parametrize("target", SYSTEMS)
@given(state=states)
def test_what_is_assumed_was_unknown_and_is_written(target: str, state: ScalerState) -> None:
    exported = export_state(state, target)
    back = read_state(exported.state, source=target).flat()
    for name in exported.assumed:
        assert name not in state.flat()
        assert name in back


@pytest.mark.parametrize("target", SYSTEMS)
@given(state=states)
def test_an_export_loads_under_weights_only(target: str, state: ScalerState) -> None:
    exported = export_state(state, target).state
    buffer = io.BytesIO()
    torch.save(exported, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True) == exported


@pytest.mark.parametrize("target", SYSTEMS)
@given(state=states)
def test_a_trip_settles_what_was_open_and_then_changes_nothing(
    target: str, state: ScalerState
) -> None:
    settled = read_state(export_state(state, target).state, source=target)
    assert read_state(export_state(settled, target).state, source=target) == settled


def test_each_target_has_the_layout_that_it_loads() -> None:
    state = ScalerState(2048.0, 9, 2, ScalerSettings(True, 2.0, 0.5, 100, 3, "clean", 1.0))
    written = {target: export_state(state, target).state for target in SYSTEMS}
    assert written == {
        "torch": {
            "scale": 2048.0,
            "growth_factor": 2.0,
            "backoff_factor": 0.5,
            "growth_interval": 100,
            "_growth_tracker": 9,
        },
        "apex": {"loss_scaler0": {"loss_scale": 2048.0, "unskipped": 9}},
        "deepspeed": {
            "dynamic": True,
            "cur_scale": 2048.0,
            "last_overflow_iter": -1,
            "scale_factor": 2.0,
            "scale_window": 100,
            "cur_iter": 9,
            "min_scale": 1.0,
            "delayed_shift": 3,
            "cur_hysteresis": 2,
            "consecutive_hysteresis": True,
        },
        "deepspeed_fused": {
            "dynamic_loss_scale": True,
            "cur_scale": 2048.0,
            "last_overflow_iter": -1,
            "scale_factor": 2.0,
            "scale_window": 100,
            "cur_iter": 10,
        },
        "fairseq": {"loss_scale": 2048.0},
        "flax": {"fin_steps": 9, "scale": 2048.0},
        "gradscale": {
            "scale": 2048.0,
            "growth_factor": 2.0,
            "backoff_factor": 0.5,
            "growth_interval": 100,
            "_growth_tracker": 9,
            "gradscale": {
                "version": 1,
                "policy": {
                    "name": "Dynamic",
                    "config": {
                        "init_scale": 2048.0,
                        "growth_factor": 2.0,
                        "backoff_factor": 0.5,
                        "growth_interval": 100,
                        "hysteresis": 3,
                        "hysteresis_refill": "clean",
                        "min_scale": 1.0,
                    },
                },
                "state": {"hysteresis_tracker": 2},
            },
        },
        "keras": {"step_counter": 9, "dynamic_scale": 2048.0},
        "megatron": {
            "scale": torch.tensor([2048.0]),
            "growth_tracker": 9,
            "hysteresis_tracker": 2,
        },
        "paddle": {
            "scale": [2048.0],
            "incr_ratio": 2.0,
            "decr_ratio": 0.5,
            "incr_every_n_steps": 100,
            "decr_every_n_nan_or_inf": 3,
            "incr_count": 9,
            "decr_count": 1,
            "use_dynamic_loss_scaling": True,
        },
    }


def test_a_target_without_hysteresis_says_that_it_drops_it() -> None:
    state = ScalerState(2048.0, 9, 2, ScalerSettings(hysteresis=2, growth_interval=2000))
    assert export_state(state, "apex").left_out == ("hysteresis_left", "hysteresis")
    assert export_state(ScalerState(2048.0, 9, 1), "apex").left_out == ()


def test_what_the_source_could_not_say_stays_reported() -> None:
    state = ScalerState(2048.0, unread=("half a counter",))
    assert export_state(state, "fairseq") == Exported(
        {"loss_scale": 2048.0}, ("half a counter",), ()
    )


def test_a_saved_dictionary_is_refused_with_the_way_out() -> None:
    with pytest.raises(TypeError, match=r"`export_state\(dict, 'apex'\)`.*`read_state\(state\)`"):
        export_state({"scale": 8.0}, "apex")  # type: ignore[arg-type]


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`target='caffe'` must be one of apex, deepspeed"):
        export_state(ScalerState(1.0), "caffe")
