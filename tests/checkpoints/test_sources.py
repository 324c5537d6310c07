"""What each system really saves is recognized and read; what it does not say is not made up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from gradscale.checkpoints import (
    SYSTEMS,
    ScalerSettings,
    ScalerState,
    detect_source,
    export_state,
    import_state,
    read_state,
)
from gradscale.policies import Dynamic, LogNormal, Observation
from gradscale.scaler import GradScaler

from . import peers

INTERVAL = 7
SAVED = {
    "torch": peers.Torch(INTERVAL),
    "apex": peers.Apex(INTERVAL),
    "deepspeed": peers.DeepSpeed(INTERVAL),
    "deepspeed_fused": peers.DeepSpeedFused(INTERVAL),
    "keras": peers.Keras(INTERVAL),
    "flax": peers.Flax(INTERVAL),
    "megatron": peers.Megatron(INTERVAL),
    "paddle": peers.Paddle(INTERVAL),
}
BACKS_OFF_AT_ONCE = [name for name in SAVED if name != "megatron"]


@pytest.mark.parametrize("name", SAVED)
def test_each_system_is_told_by_its_keys(name: str) -> None:
    assert detect_source(SAVED[name].save()) == name


def test_fairseq_is_told_inside_its_optimizer_state() -> None:
    saved = {"state": {}, "param_groups": [], "loss_scale": 4.0}
    assert detect_source(saved) == "fairseq"
    state = read_state(saved)
    assert state.scale == 4.0
    assert state.missing == ("good_steps", "hysteresis_left")


def test_every_system_is_covered_here() -> None:
    assert {*SAVED, "fairseq", "gradscale"} == set(SYSTEMS)


@pytest.mark.parametrize("name", BACKS_OFF_AT_ONCE)
@given(
    before=st.lists(st.integers(0, 9).map(lambda n: n == 0), max_size=60),
    after=st.lists(st.integers(0, 9).map(lambda n: n == 0), max_size=60),
    interval=st.integers(1, 12),
)
def test_an_imported_run_goes_on_as_it_would_have(
    name: str, before: list[bool], after: list[bool], interval: int
) -> None:
    peer = type(SAVED[name])(interval)
    for overflow in before:
        peer.update(overflow)
    state = read_state(peer.save())
    if name == "deepspeed_fused":  # whose growth after an overflow comes late by a step
        assume(before and not before[-1])
        after = [False] * len(after)
    scale = torch.tensor(state.scale)
    tracker = torch.tensor(state.good_steps, dtype=torch.int32)
    settings = state.settings
    for overflow in after:
        peer.update(overflow)
        torch._amp_update_scale_(
            scale,
            tracker,
            torch.tensor(float(overflow)),
            settings.growth_factor,
            settings.backoff_factor,
            settings.growth_interval,
        )
        assert scale.item() == peer.now


def test_what_a_fused_deepspeed_run_does_differently_is_said() -> None:
    assert "one finite step later" in read_state(peers.DeepSpeedFused(INTERVAL).save()).unread[0]
    assert not read_state(peers.DeepSpeed(INTERVAL).save()).unread


def test_hysteresis_counts_down_to_the_overflow_that_backs_off() -> None:
    megatron, paddle = peers.Megatron(INTERVAL, 2), peers.Paddle(INTERVAL, 3)
    deepspeed = peers.DeepSpeed(INTERVAL, 2, consecutive=True)
    left = [[read_state(p.save()).hysteresis_left for p in (megatron, paddle, deepspeed)]]
    for _ in range(3):
        for peer in (megatron, paddle, deepspeed):
            peer.update(overflow=True)
        left.append([read_state(p.save()).hysteresis_left for p in (megatron, paddle, deepspeed)])
    assert left == [[2, 3, 2], [1, 2, 1], [1, 1, 1], [1, 3, 1]]
    assert (megatron.now, paddle.now, deepspeed.now) == (256.0, 512.0, 256.0)


def test_settings_are_read_apart_from_the_state() -> None:
    settings = read_state(peers.DeepSpeed(500, 3, consecutive=True).save()).settings
    assert settings == ScalerSettings(True, 2.0, 0.5, 500, 3, "clean", 2.0**-100)
    assert read_state(peers.Megatron(500).save()).settings.growth_interval is None


def test_static_scalers_are_read_as_static() -> None:
    zero = read_state({"cur_scale": 128.0, "dynamic": False})
    fused = read_state({"cur_scale": 128.0, "dynamic_loss_scale": False, "cur_iter": 3})
    assert zero == fused == ScalerState(128.0, settings=ScalerSettings(dynamic=False))


def test_keras_own_numbering_is_read_when_the_source_is_named() -> None:
    store = {"0": 0, "1": 0.0, "2": torch.tensor(5), "3": torch.tensor(32768.0), "4": 41}
    state = read_state(store, source="keras")
    assert (state.scale, state.good_steps) == (32768.0, 5)


def test_an_exported_state_loads_into_torchs_own_scaler() -> None:
    scaler = torch.amp.GradScaler("cpu")
    state = read_state(peers.Keras(INTERVAL).save())
    scaler.load_state_dict(export_state(state, "torch").state)
    assert scaler.get_scale() == 1024.0
    assert scaler.get_growth_interval() == INTERVAL


class Pickled:
    """Stands for DeepSpeed's scaler object in a ZeRO checkpoint."""


@pytest.mark.parametrize(
    ("state", "kind", "words"),
    [
        ({}, ValueError, "disabled scaler saved it"),
        ({"foo": 1}, ValueError, r"knows no system that saves the keys \['foo'\]"),
        ({"model": {}, "scaler": SAVED["torch"].save()}, ValueError, r"pass `state\['scaler'\]`"),
        (Pickled(), TypeError, r"pass `vars\(loss_scaler\)`"),
        ({**SAVED["torch"].save(), "fin_steps": 3}, ValueError, "keys of torch and flax"),
        ({"loss_scaler0": {}, "loss_scaler1": {}}, ValueError, "found 2 apex loss scalers"),
        ({"loss_scale": "dynamic"}, TypeError, "'dynamic', not one number"),
        ({"loss_scale": torch.ones(2)}, TypeError, "not one number"),
        ({"loss_scale": [1.0, 2.0]}, TypeError, "not one number"),
        ({"loss_scale": 0.0}, ValueError, "had lost its scale"),
        ({"loss_scale": float("nan")}, ValueError, "had lost its scale"),
        ({"loss_scale": 2.0**-127}, ValueError, "had lost its scale"),
        ({"fin_steps": 1.5, "scale": 2.0}, TypeError, "not a whole number"),
        ({"fin_steps": -1, "scale": 2.0}, ValueError, "must not be negative"),
        (
            {"cur_scale": 2.0, "scale_window": 9},
            ValueError,
            r"`state\['scale_factor'\]` is absent",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_way_out(
    state: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        read_state(state)


def test_an_unknown_system_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`source='caffe'` must be one of apex, deepspeed"):
        read_state({"loss_scale": 1.0}, source="caffe")


@pytest.mark.parametrize("name", [*SAVED, "fairseq"])
def test_a_new_scaler_goes_on_from_any_system(name: str) -> None:
    saved = {"loss_scale": 1024.0} if name == "fairseq" else SAVED[name].save()
    scaler = GradScaler("cpu")
    scaler.load_state_dict(import_state(saved), configuration="restore")
    assert scaler.get_scale() == 1024.0
    assert scaler.state_dict()["_growth_tracker"] == (read_state(saved).good_steps or 0)


def test_hysteresis_and_settings_reach_the_scaler() -> None:
    peer = peers.DeepSpeed(INTERVAL, 3, consecutive=True)
    peer.update(overflow=True)
    scaler = GradScaler("cpu")
    scaler.load_state_dict(import_state(peer.save()), configuration="restore")
    assert scaler.policy == Dynamic(
        init_scale=1024.0,
        growth_interval=INTERVAL,
        hysteresis=3,
        hysteresis_refill="clean",
        min_scale=2.0**-100,
    )
    assert scaler.state_dict()["gradscale"]["state"]["hysteresis_tracker"] == 2


def test_nothing_that_was_assumed_contradicts_the_scaler() -> None:
    scaler = GradScaler("cpu", growth_interval=123, growth_factor=4.0)
    scaler.load_state_dict(import_state(peers.Megatron(INTERVAL).save()))  # a warning would fail
    assert scaler.policy == Dynamic(growth_interval=123, growth_factor=4.0)


@pytest.mark.parametrize("policy", [Dynamic(hysteresis=2), LogNormal()])
def test_our_own_state_is_read_and_what_others_cannot_hold_is_said(policy: Any) -> None:
    scaler = GradScaler("cpu", policy=policy)
    saved = scaler.state_dict()
    state = read_state(saved)
    assert detect_source(saved) == "gradscale"
    assert state.scale == 65536.0
    dynamic = isinstance(policy, Dynamic)
    assert state.settings.hysteresis == (2 if dynamic else None)
    assert ("policy LogNormal" in state.unread) is not dynamic
    assert ("state.mean" in export_state(state, "apex").left_out) is not dynamic


HYSTERETIC = {
    "megatron": lambda interval, left: peers.Megatron(interval, left),
    "paddle": lambda interval, left: peers.Paddle(interval, left),
    "deepspeed": lambda interval, left: peers.DeepSpeed(interval, left),
    "deepspeed, consecutive": lambda interval, left: peers.DeepSpeed(interval, left, True),
}


@pytest.mark.parametrize("name", HYSTERETIC)
@given(
    before=st.lists(st.integers(0, 3).map(lambda n: n == 0), max_size=40),
    after=st.lists(st.integers(0, 3).map(lambda n: n == 0), max_size=40),
    interval=st.integers(1, 6),
    hysteresis=st.integers(1, 4),
)
def test_an_imported_hysteresis_goes_on_as_it_would_have(
    name: str, before: list[bool], after: list[bool], interval: int, hysteresis: int
) -> None:
    peer = HYSTERETIC[name](interval, hysteresis)
    for overflow in before:
        peer.update(overflow)
    found = read_state(peer.save())
    refill = found.settings.hysteresis_refill
    assert refill is not None
    policy = Dynamic(growth_interval=interval, hysteresis=hysteresis, hysteresis_refill=refill)
    state = policy.init()._replace(
        scale=torch.tensor(found.scale),
        growth_tracker=torch.tensor(found.good_steps, dtype=torch.int32),
        hysteresis_tracker=torch.tensor(found.hysteresis_left, dtype=torch.int32),
    )
    for overflow in after:
        peer.update(overflow)
        state = policy.update(state, Observation(torch.tensor(float(overflow))))
        assert state.scale.item() == peer.now
