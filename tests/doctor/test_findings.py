"""Each finding: when it is made, when it is not, and what it says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gradscale
from checkpoints import peers
from gradscale.doctor import Diagnosis, Finding, examine
from gradscale.policies import presets

from . import saved

TORCH = torch.amp.GradScaler("cpu").state_dict()


def look(folder: Path, state: Any, against: Any = None) -> Diagnosis:
    torch.save(state, folder / "x.pt")
    return examine(folder / "x.pt", against)


def codes(diagnosis: Diagnosis, *, problems: bool = True) -> list[str]:
    return [f.code for f in (diagnosis.problems if problems else diagnosis.findings)]


@pytest.mark.parametrize(
    ("scale", "code", "words"),
    [
        (0.0, "zero", "The scale is 0."),
        (2.0**-140, "subnormal", "its reciprocal is infinite or inexact"),
        (math.inf, "not-finite", "The scale is inf."),
        (math.nan, "not-finite", "The scale is nan."),
        (-2.0, "not-finite", "The scale is -2."),
        (2.0**-126, "at-floor", "it can fall no further"),
        (2.0**-30, "collapsed", "what drove it there was infinite or NaN at any scale"),
        (0.25, "below-one", "gradients overflow even unscaled"),
    ],
)
def test_a_scale_that_is_lost_is_a_problem(scale, code, words, tmp_path):
    diagnosis = look(tmp_path, {"scaler": TORCH | {"scale": scale}})
    assert codes(diagnosis) == [code]
    assert words in str(diagnosis)
    assert diagnosis.problems[0].way_out


@pytest.mark.parametrize("scale", [1.0, 2.0**10, 2.0**16])
def test_an_ordinary_scale_is_healthy(scale, tmp_path):
    diagnosis = look(tmp_path, {"scaler": TORCH | {"scale": scale}})
    assert diagnosis.healthy and codes(diagnosis, problems=False) == []
    assert str(diagnosis).endswith("No problem found.")


@settings(deadline=None)  # a process is started for each
@given(exponent=st.integers(0, 16), tracker=st.integers(0, 1999))
def test_no_ordinary_state_of_torch_raises_an_alarm(tmp_path_factory, exponent, tracker):
    state = TORCH | {"scale": 2.0**exponent, "_growth_tracker": tracker}
    assert look(tmp_path_factory.mktemp("x"), state).findings == ()


@pytest.mark.parametrize(
    ("floor", "whose"), [({}, "default floor"), ({"min_loss_scale": 2.0}, "its min_scale")]
)
def test_the_floor_is_the_runs_own_or_the_systems(floor, whose, tmp_path):
    peer = peers.Megatron(500)
    peer.now = 1.0
    diagnosis = examine(saved.megatron(tmp_path / "m.pt", peer, **floor))
    assert codes(diagnosis) == ["at-floor"]
    assert whose in diagnosis.problems[0].evidence


def test_deepspeed_stops_at_its_floor(tmp_path):
    peer = peers.DeepSpeed(500)
    peer.min_scale = peer.cur_scale = 1.0
    peer.last_overflow_iter, peer.cur_iter = 3, 4
    (problem,) = examine(saved.zero(tmp_path / "z.pt", peer)).problems
    assert problem.code == "at-floor"
    assert "DeepSpeed stops with an error at the next overflow" in problem.evidence


def test_notes_do_not_make_a_state_unhealthy(tmp_path):
    diagnosis = look(tmp_path, {"scaler": TORCH | {"scale": 3 * 2.0**16, "growth_factor": 1.5}})
    assert diagnosis.healthy
    assert codes(diagnosis, problems=False) == [
        "above-float16",
        "not-a-power-of-two",
        "not-default",
    ]
    assert "growth_factor=1.5 (default 2)" in str(diagnosis)


def test_a_scale_at_its_cap_is_noted(tmp_path):
    amp = {"loss_scaler0": {"loss_scale": 2.0**24, "unskipped": 3}}
    assert "at-cap" in codes(look(tmp_path, {"amp": amp}), problems=False)


@pytest.mark.parametrize(("tracker", "problem"), [(499, False), (500, True), (1999, True)])
def test_a_tracker_beyond_the_interval_never_grows_the_scale(tracker, problem, tmp_path):
    state = TORCH | {"growth_interval": 500, "_growth_tracker": tracker}
    assert codes(look(tmp_path, state)) == (["tracker-beyond"] if problem else [])
    scale, count = torch.tensor(1024.0), torch.tensor(tracker, dtype=torch.int32)
    for _ in range(600):  # what torch's own kernel does
        torch._amp_update_scale_(scale, count, torch.tensor(0.0), 2.0, 0.5, 500)
    assert (scale.item() == 1024.0) == problem


def counted(**counters: Any) -> dict[str, Any]:
    state = gradscale.GradScaler("cpu").state_dict()
    state["gradscale"]["counters"] |= counters
    return state


@pytest.mark.parametrize(
    ("counters", "expected"),
    [
        ({"steps": 1000, "skipped": 12, "reasons": {"overflow": 12}, "updates": 1000}, []),
        ({"steps": 9000, "skipped": 25, "reasons": {"overflow": 25}, "updates": 9000}, []),
        (
            {"steps": 9000, "skipped": 900, "reasons": {"overflow": 900}, "updates": 9000},
            ["skipped-share"],
        ),
        (
            {"steps": 90, "skipped": 6, "consecutive": 6, "reasons": {"overflow": 6}},
            ["skipping"],
        ),
        (
            {"steps": 90, "skipped": 3, "reasons": {"nonfinite_input": 2, "overflow": 1}},
            ["nonfinite-input"],
        ),
        (
            {"steps": 90, "skipped": 40, "consecutive": 40, "reasons": {"nonfinite_parameter": 40}},
            ["nonfinite-parameter", "skipping"],
        ),
    ],
)
def test_the_counters_tell_bad_data_from_a_bad_scale(counters, expected, tmp_path):
    assert codes(look(tmp_path, counted(**counters))) == expected


@pytest.mark.parametrize(("steps", "code"), [(1999, "untested"), (2000, "still-growing")])
def test_a_scale_that_never_overflowed_is_limited_by_time(steps, code, tmp_path):
    diagnosis = look(tmp_path, counted(steps=steps, updates=steps))
    assert codes(diagnosis, problems=False) == [code]
    assert f"None of {steps:,} steps overflowed" in str(diagnosis)
    overflowed = {"overflow": 1}
    assert look(
        tmp_path, counted(steps=steps, updates=steps, skipped=1, reasons=overflowed)
    ).healthy


def test_torchs_scale_gives_away_that_it_never_overflowed(tmp_path):
    grown = TORCH | {"scale": 2.0**19, "_growth_tracker": 700}
    assert codes(look(tmp_path, {"scaler": grown, "global_step": 6700})) == ["still-growing"]
    assert look(tmp_path, {"scaler": grown, "global_step": 8700}).healthy
    assert look(tmp_path, {"scaler": grown, "global_step": 6701}).healthy
    assert look(tmp_path, {"scaler": grown}).healthy


def test_hysteresis_that_is_used_up_is_noted(tmp_path):
    peer = peers.Megatron(500)
    peer.update(overflow=True)
    diagnosis = examine(saved.megatron(tmp_path / "m.pt", peer, hysteresis=2))
    assert codes(diagnosis, problems=False)[0] == "hysteresis-used-up"


def test_a_frozen_plan_is_a_problem_and_says_why(tmp_path):
    state = counted()
    track = {"plan": {"exponents": [0, 3, 0]}, "frozen": "reentrant checkpointing hides leaves"}
    state["gradscale"]["layerwise"] = {"tracks": {"a": track, "b": {**track, "frozen": None}}}
    diagnosis = look(tmp_path, state)
    assert codes(diagnosis) == ["frozen-plan"]
    assert "1 of 2 graphs stay at one scale: reentrant" in diagnosis.problems[0].evidence
    assert diagnosis.patients[0].plan.scales == 2


@pytest.mark.parametrize(
    ("against", "expected"),
    [
        ("torch", []),
        ("growth_interval=2000", []),
        (gradscale.Dynamic(), []),
        ("growth_interval=500,backoff_factor=0.5", ["settings-differ"]),
        ({"growth_factor": 4.0}, ["settings-differ"]),
        (presets.megatron(), ["settings-differ"]),
        ("deepspeed", ["settings-differ"]),
    ],
)
def test_settings_that_differ_from_the_codes_are_a_problem(against, expected, tmp_path):
    diagnosis = look(tmp_path, {"scaler": TORCH}, against)
    assert codes(diagnosis) == expected
    if expected:
        assert "overwrites the code's settings by the saved ones, silently" in str(diagnosis)


def test_another_policy_than_the_codes_is_a_problem(tmp_path):
    state = gradscale.GradScaler("cpu", policy=gradscale.Band()).state_dict()
    diagnosis = look(tmp_path, state, gradscale.Dynamic())
    assert "policy='Band' saved, 'Dynamic' in the code" in diagnosis.problems[0].evidence
    assert look(tmp_path, state, gradscale.Band()).healthy


def test_what_a_system_does_not_save_cannot_be_compared(tmp_path):
    file = saved.fairseq(tmp_path / "f.pt", 16.0)
    diagnosis = examine(file, "growth_interval=500")
    note = next(f for f in diagnosis.findings if f.code == "not-compared")
    assert "fairseq's FP16Optimizer does not save growth_interval" in note.evidence


@pytest.mark.parametrize(
    ("against", "words"),
    [
        ("caffe", r"`against='caffe'` must be a preset or settings. Pass one of torch, apex"),
        ("growth=3", r"`against=growth=…` is no setting. Pass one of init_scale, growth_factor"),
        ("hysteresis=two", r"`against=hysteresis=two` must be a number, such as 500, 0.5 or 2\^16"),
    ],
)
def test_settings_that_cannot_be_compared_are_refused(against, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        look(tmp_path, TORCH, against)


@pytest.mark.parametrize(
    ("entry", "value", "words"),
    [
        ("_growth_tracker", -3, "must not be negative"),
        ("_growth_tracker", 1.5, "not a whole number"),
        ("_growth_tracker", math.inf, "infinity"),
        ("growth_interval", "often", "not one number"),
        ("scale", "dynamic", "not one number"),
        ("scale", torch.ones(2), "not one number"),
        ("scale", 10**400, "too large"),
    ],
)
def test_a_state_that_makes_no_sense_is_a_problem(entry, value, words, tmp_path):
    diagnosis = look(tmp_path, {"scaler": TORCH | {entry: value}})
    assert codes(diagnosis) == ["no-scale" if entry == "scale" else "unreadable"]
    assert words in str(diagnosis)


def test_a_diagnosis_is_plain_json_with_the_worst_first(tmp_path):
    import json

    amp = {"loss_scaler0": {"loss_scale": 2.0**20, "unskipped": 3}}
    amp["loss_scaler1"] = {"loss_scale": math.nan, "unskipped": 3}
    diagnosis = look(tmp_path, {"amp": amp})
    assert [f.severity for f in diagnosis.findings] == ["error", "note"]
    written = json.loads(json.dumps(diagnosis.to_dict(), allow_nan=False))
    assert written["healthy"] is False and written["scalers"][1]["scale"] == "nan"
    assert written["findings"][0]["where"] == '["amp"]["loss_scaler1"]'
    assert 'In: ["amp"]["loss_scaler1"]' in str(diagnosis)


def test_a_finding_says_what_why_and_what_to_do():
    finding = Finding("warning", "x", "A.", "B.", "C.")
    assert str(finding) == "warning  A.\n         Because: B.\n         Do: C."
