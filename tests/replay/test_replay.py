"""A replay against the truth: the recorded policy exactly, others against real runs under them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradscale import Recorder
from gradscale.policies import (
    Band,
    Dynamic,
    Guarded,
    LastMaximum,
    LogNormal,
    Policy,
    Quantile,
    Static,
    TwoSided,
    presets,
)
from gradscale.recording import Recording, read
from gradscale.replay import Replay, replay
from gradscale.replay.peaks import Peaks
from gradscale.scaler import GradScaler

POLICIES = {
    "static": Static(2.0**12),
    "dynamic": Dynamic(init_scale=2.0**20, growth_interval=7),
    "hysteresis": Dynamic(init_scale=2.0**20, growth_interval=5, hysteresis=2),
    "metaseq": presets.metaseq(),
    "last maximum": LastMaximum(),
    "lognormal": LogNormal(),
    "quantile": Quantile(window=20, overflow_share=0.1),
    "band": Band(),
    "two-sided": TwoSided(),
    "guarded": Guarded(LastMaximum(), Dynamic(growth_interval=6)),
}
BAD = math.nan


class Half(torch.autograd.Function):
    """Passes a gradient through float16, as a half-precision layer does."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.half().float()


def record(path: Path, policy: Policy, gradients: list[float], scaler=None) -> Recording:
    """A run whose gradients are given, whatever is learned; NaN stands for a bad batch."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    ours = scaler is None
    scaler = GradScaler("cpu", policy=policy) if scaler is None else scaler
    with Recorder(path, scaler, amax=ours, exponents=ours) as recorder:
        for gradient in gradients:
            optimizer.zero_grad()
            loss = (Half.apply(parameter) * torch.tensor([gradient, gradient / 8])).sum()
            recorder.note_loss(loss)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    return read(path)


def drifting(steps: int = 120, seed: int = 0) -> list[float]:
    """Gradients that shrink and jump, with a bad batch now and then."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(steps, generator=generator)
    values = [2.0 ** float(-2 - step / 20 + 2 * noise[step]) for step in range(steps)]
    return [BAD if step % 37 == 36 else value for step, value in enumerate(values)]


def fates(found: Replay | Recording) -> list[tuple[float, bool]]:
    return [(step.scale, step.skipped) for step in found.steps]


@pytest.mark.parametrize("name", POLICIES)
def test_the_policy_that_recorded_gives_back_its_own_run_exactly(name, tmp_path):
    recording = record(tmp_path / "r.jsonl", POLICIES[name], drifting())
    found = replay(recording)
    assert fates(found) == fates(recording)
    assert found.exact and found.predicted == 0 and found.moved == ()
    assert found.policy == POLICIES[name]


def test_a_recording_of_torchs_scaler_gives_back_its_run_exactly(tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=7)
    recording = record(tmp_path / "r.jsonl", Dynamic(), drifting(), scaler)
    assert fates(replay(recording)) == fates(recording)


@pytest.mark.parametrize("name", ["dynamic", "hysteresis", "quantile", "guarded"])
def test_a_recording_that_begins_in_the_middle_of_a_run_is_replayed_exactly(name, tmp_path):
    scaler = GradScaler("cpu", policy=POLICIES[name])
    record(tmp_path / "first.jsonl", POLICIES[name], drifting(), scaler)
    scaler.also_measure("amax")
    recording = record(tmp_path / "second.jsonl", POLICIES[name], drifting(seed=1), scaler)
    assert recording.header.state is not None
    assert fates(replay(recording)) == fates(recording)


def test_a_scale_that_was_set_by_hand_is_taken_over_and_named(tmp_path):
    policy = Dynamic(init_scale=2.0**10, growth_interval=4)
    scaler = GradScaler("cpu", policy=policy)
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    with Recorder(tmp_path, scaler, amax=True):
        for step in range(12):
            optimizer.zero_grad()
            scaler.scale(parameter.sum()).backward()
            scaler.step(optimizer)
            scaler.update(2.0**4 if step == 5 else None)
    recording = read(tmp_path)
    assert [step.asked for step in recording.steps].index(False) == 5
    found = replay(recording)
    assert fates(found) == fates(recording) and found.moved == (6,)


@pytest.mark.parametrize("name", POLICIES)
def test_another_policy_does_what_it_did_in_a_real_run_on_the_same_gradients(name, tmp_path):
    """At a scale of 1 nothing overflows, so every magnitude is known, and so is every answer."""
    gradients = drifting()
    recording = record(tmp_path / "recorded.jsonl", Static(1.0), gradients)
    truth = record(tmp_path / "truth.jsonl", POLICIES[name], gradients)
    found = replay(recording, POLICIES[name])
    assert fates(found) == fates(truth)
    overflows = [step.step for step in truth.steps if step.overflow]
    assert found.first("counterfactual") == (overflows[0] if overflows else None)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(-20, 15), min_size=1, max_size=30), st.integers(0, 30))
def test_whatever_the_gradients_a_policy_that_sees_them_all_is_replayed_exactly(
    tmp_path_factory, exponents, log2_scale
):
    path = tmp_path_factory.mktemp("run")
    gradients = [2.0**exponent for exponent in exponents]
    policy = Dynamic(init_scale=2.0**log2_scale, growth_interval=2)
    recording = record(path / "recorded.jsonl", Static(2.0**-8), gradients)
    truth = record(path / "truth.jsonl", policy, gradients)
    assert fates(replay(recording, policy)) == fates(truth)


def test_a_lower_scale_overflows_nowhere_and_a_higher_one_where_the_recorded_did(tmp_path):
    recording = record(tmp_path / "r.jsonl", Static(2.0**16), [0.25, 4.0, 0.25])
    lower = replay(recording, Static(2.0**15))
    assert [step.certain for step in lower.steps] == [True, False, True]
    higher = replay(recording, Static(2.0**17))
    assert [(step.skipped, step.certain) for step in higher.steps] == [
        (False, False),
        (True, True),
        (False, False),
    ]
    assert [step.basis for step in higher.steps] == ["same steps"] * 3
    highest = replay(recording, Static(2.0**18))
    assert [step.basis for step in highest.steps] == ["counterfactual"] * 3


def test_bad_data_is_lost_at_any_scale_and_shown_to_no_policy(tmp_path):
    recording = record(tmp_path / "r.jsonl", Static(1.0), [1.0, BAD, 1.0])
    found = replay(recording, Dynamic(init_scale=4.0))
    assert [(s.scale, s.skipped, s.overflow) for s in found.steps] == [
        (4.0, False, False),
        (4.0, True, False),
        (4.0, False, False),
    ]
    assert found.steps[1].certain


def test_overflows_in_a_row_bound_the_magnitude_behind_them(tmp_path):
    recording = record(tmp_path / "r.jsonl", Dynamic(init_scale=2.0**20), [1.0] * 8)
    assert [step.skipped for step in recording.steps] == [True] * 5 + [False] * 3
    peaks = Peaks(recording)
    assert [peaks.limit(index) for index in range(5)] == [2.0**16] * 5
    found = replay(recording, Dynamic(init_scale=2.0**17))
    assert [step.skipped for step in found.steps[:3]] == [True, True, False]


def test_the_measured_gradients_inside_the_network_decide_and_not_those_of_the_parameters(
    tmp_path,
):
    from gradscale.watching import watch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with torch.no_grad():
        model[1].weight.mul_(2.0**9)  # large gradients of activations ...
    inputs = torch.full((2, 4), 2.0**-9)  # ... and small ones of the weights before them

    def run(path, policy):
        scaler = GradScaler("cpu", policy=policy)
        with watch(model, scaler, every=1) as watching:
            with Recorder(path, scaler, watching, amax=True):
                for _ in range(6):
                    optimizer.zero_grad()
                    with torch.autocast("cpu", torch.float16):
                        loss = model(inputs).float().sum()
                    scaler.scale(loss).backward()
                    scaler.step(optimizer)
                    scaler.update()
        return read(path)

    recording = run(tmp_path / "recorded.jsonl", Static(1.0))
    policy = Dynamic(init_scale=2.0**20)
    truth = run(tmp_path / "truth.jsonl", policy)
    assert any(step.skipped for step in truth.steps)
    assert fates(replay(recording, policy)) == fates(truth)
    # The watch also says what is lost at another scale: nothing, where it does not reach.
    found = replay(recording, Static(2.0**4))
    assert found.lost_share is not None and found.lost_steps == 6


def test_a_path_is_refused_with_the_way_out():
    with pytest.raises(TypeError, match=r"`replay\('runs/mine'\)`.*`gradscale.recording.read"):
        replay("runs/mine")


def test_what_the_recording_lacks_is_refused_with_the_way_out(tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    recording = record(tmp_path / "r.jsonl", Dynamic(), [1.0, 1.0], scaler)
    with pytest.raises(
        ValueError, match=r"`LogNormal` needs `amax` at every step, and step 0.*amax=True"
    ):
        replay(recording, LogNormal())
    with pytest.raises(ValueError, match=r"`TwoSided` needs `exponents`.*exponents=True"):
        replay(recording, TwoSided())
    with pytest.raises(
        ValueError, match=r"scale 4, and the policy would have taken it at 8.*a watch"
    ):
        replay(recording, Static(8.0))
    assert fates(replay(recording, Static(2.0))) == [(2.0, False), (2.0, False)]


def test_a_train_folder_without_a_recording_replays_what_its_steps_tell(tmp_path):
    (tmp_path / "steps.jsonl").write_text(
        '{"step": 0, "loss": 1.0, "scale": 65536.0, "skipped": true, "reason": "overflow"}\n'
        '{"step": 1, "loss": 1.0, "scale": 32768.0, "skipped": false, "reason": null}\n'
    )
    recording = read(tmp_path)
    assert fates(replay(recording, Dynamic())) == fates(recording)
    with pytest.raises(ValueError, match="does not say which policy recorded it"):
        replay(recording)


def test_a_recording_without_steps_has_nothing_to_replay(tmp_path):
    recording = record(tmp_path / "r.jsonl", Dynamic(), [])
    with pytest.raises(ValueError, match="has no steps to replay"):
        replay(recording)
