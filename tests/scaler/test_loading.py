"""Loading a state takes over all of it or nothing, and says what is wrong with it."""

from __future__ import annotations

import copy
import json
import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gradscale
from gradscale import GradScaler
from gradscale.policies import (
    Band,
    Dynamic,
    Guarded,
    LastMaximum,
    LogNormal,
    Policy,
    Quantile,
    Recovering,
    Static,
    TwoSided,
)

POLICIES: dict[str, Policy] = {
    "Dynamic": Dynamic(growth_interval=5, hysteresis=2),
    "tolerance": Dynamic(tolerance=0.1, window_follows_scale=True),
    "Static": Static(8.0),
    "Band": Band(),
    "LogNormal": LogNormal(),
    "LastMaximum": LastMaximum(),
    "Quantile": Quantile(window=1500),
    "TwoSided": TwoSided(),
    "Guarded": Guarded(LogNormal()),
    "Recovering": Recovering(Dynamic(init_scale=0.5), below=((2, 8.0),)),
}
MEASURING = [name for name, policy in POLICIES.items() if policy.needs]


class Run:
    """A small training run."""

    def __init__(self, policy: Policy | None = None, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01)
        self.scaler = GradScaler("cpu", policy=policy, **options)

    def train(self, steps: int = 1, bad: int = -1) -> Run:
        for step in range(steps):
            self.optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = self.model(torch.ones(2, 3)).float().pow(2).mean()
            self.scaler.scale(loss * (math.inf if step == bad else 1.0)).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return self


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("name", POLICIES)
def test_a_restored_policy_trains_on_as_the_saved_one_would_have(name: str, used: bool) -> None:
    saved = Run(POLICIES[name]).train(7, bad=3)
    fresh = Run().train(3 if used else 0)
    fresh.model.load_state_dict(saved.model.state_dict())
    fresh.scaler.load_state_dict(saved.scaler.state_dict(), configuration="restore")
    assert fresh.scaler.policy == saved.scaler.policy
    saved.train(6)
    fresh.train(6)
    one, other = saved.scaler.state_dict(), fresh.scaler.state_dict()
    assert same(one, other)
    for mine, theirs in zip(saved.model.parameters(), fresh.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", MEASURING)
def test_a_policy_that_measures_is_not_restored_into_a_step_that_did_not(name: str) -> None:
    run = Run()
    run.scaler.scale(run.model(torch.ones(1, 3)).sum()).backward()
    run.scaler.unscale_(run.optimizer)
    state = GradScaler("cpu", policy=POLICIES[name]).state_dict()
    with pytest.raises(RuntimeError, match=r"in the middle of a step: .* has not measured. Load"):
        run.scaler.load_state_dict(state, configuration="restore")
    run.scaler.step(run.optimizer)
    run.scaler.update()
    assert isinstance(run.train().scaler.policy, Dynamic)
    run.scaler.load_state_dict(state, configuration="restore")
    assert run.train().scaler.policy == POLICIES[name]


def own(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state["gradscale"].update(changes)


def within(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        for name in path[:-1]:
            state = state[name]
        state[path[-1]] = value

    return change


FIRST = ("gradscale", "layerwise", "tracks")


def in_track(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        layerwise = state["gradscale"]["layerwise"]
        tracks = json.loads(layerwise["tracks"])
        held: Any = next(iter(tracks.values()))
        for name in path[:-1]:
            held = held[name]
        held[path[-1]] = value
        layerwise["tracks"] = json.dumps(tracks)

    return change


UNUSABLE: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "counters of one": (own(counters={"a": 1}), r"\['steps'\]` is absent"),
    "no counters": (own(counters=[]), r"\['counters'\]` is \[\]; it must be a dictionary"),
    "steps of text": (
        within("gradscale", "counters", "steps", value="abc"),
        r"`state_dict\['gradscale'\]\['counters'\]\['steps'\]` is 'abc', not one number",
    ),
    "negative skips": (
        within("gradscale", "counters", "skipped", value=-1),
        "must not be negative",
    ),
    "reasons of text": (
        within("gradscale", "counters", "reasons", value={"overflow": "x"}),
        "not one number",
    ),
    "ours is a list": (lambda state: state.update(gradscale=[1]), "must be a dictionary"),
    "version of text": (own(version="new"), "not one number"),
    "state of a list": (own(state=[]), "must be a dictionary"),
    "policy of a number": (own(policy=3), "must be a dictionary"),
    "policy without a name": (own(policy={"config": {}}), r"\['name'\]` is absent"),
    "tracker of text": (within("_growth_tracker", value="5"), "not one number"),
    "negative tracker": (within("_growth_tracker", value=-3), "must lie between 0 and 2147483647"),
    "huge tracker": (within("_growth_tracker", value=2**40), "must lie between 0 and"),
    "half a tracker": (within("_growth_tracker", value=1.5), "not a whole number"),
    "tracker of ours": (
        within("gradscale", "state", "growth_tracker", value=-1),
        "must not be negative|between 0 and",
    ),
    "window of nothing": (
        within("gradscale", "state", "growth_window", value=0),
        "must lie between 1 and",
    ),
    "scale of text": (within("scale", value="65536"), "not one number"),
    "scale of a list": (within("scale", value=[1.0, 2.0]), "not one number"),
    "NaN": (within("scale", value=math.nan), "must have a finite scale of at least"),
    "layerwise without tracks": (own(layerwise={"steps": 3}), r"\['tracks'\]` is absent"),
    "lowered to infinity": (
        within("gradscale", "layerwise", "lowered", value=math.inf),
        "infinity, which is not a whole number",
    ),
    "lowered to 200": (
        within("gradscale", "layerwise", "lowered", value=200),
        "must lie between -126 and 127",
    ),
    "tracks of a list": (within(*FIRST, value=[]), "must be a dictionary"),
    "tracks of no JSON": (within(*FIRST, value="{"), r"\['tracks'\]` is no JSON: Expecting"),
    "anchor of text": (in_track("anchor", value="x"), "not one number"),
    "reach of text": (in_track("outliers", "reach", value="x"), "not one number"),
    "reach too far": (in_track("outliers", "reach", value=64), "must lie between 0 and 63"),
    "no times": (in_track("outliers", value={"reach": 3}), r"\['times'\]` is absent"),
    "outliers of a list": (in_track("outliers", value=[1]), "must be a dictionary"),
    "lost of text": (in_track("lost", value="x"), "must be a dictionary"),
    "lost without exponents": (in_track("lost", value={}), r"\['exponents'\]` is absent"),
    "lost too far": (
        in_track("lost", value={"exponents": [9999], "origins": [], "leaves": []}),
        "elements must lie",
    ),
    "an overflow in the future": (
        within("gradscale", "layerwise", "since", value=10**6),
        "must lie between 0 and",
    ),
    "lost before the first step": (in_track("lost_at", value=-1), "must not be negative|between 0"),
    "exponents of text": (in_track("plan", "exponents", value=["a"]), "elements must lie"),
    "exponents too far": (in_track("plan", "exponents", value=[99]), "elements must lie"),
    "another's plan": (in_track("plan", "signature", value="x"), "must be one of"),
    "no history": (in_track("history", value=None), "must be a list"),
    "a count of text": (
        in_track("history", 0, "records", 0, "counts", "zero", value="x"),
        "not one number",
    ),
    "a format of nobody": (
        in_track("history", 0, "records", 0, "format", value="fp99"),
        "fp99",
    ),
}


@pytest.mark.parametrize("configuration", ["keep", "restore"])
@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_state_is_refused_and_changes_nothing(name: str, configuration: Any) -> None:
    change, words = UNUSABLE[name]
    state = Run(layerwise=True).train(5).scaler.state_dict()
    change(state)
    run = Run(layerwise=True).train(3)
    before = copy.deepcopy(run.scaler.state_dict())
    with pytest.raises((ValueError, TypeError), match=words):
        run.scaler.load_state_dict(state, configuration=configuration)
    assert same(run.scaler.state_dict(), before)
    run.train(2)
    assert run.scaler.counters.steps == 5


@pytest.mark.parametrize("value", [math.nan, -1.0, 0.0, math.inf, "x", None])
def test_the_scale_of_a_guard_is_a_scale(value: Any) -> None:
    state = GradScaler("cpu", policy=Guarded(Band())).state_dict()
    state["gradscale"]["state"]["guard_scale"] = value
    scaler = GradScaler("cpu", policy=Guarded(Band()))
    if value is None:  # as if it were not there
        scaler.load_state_dict(state)
        return
    with pytest.raises((ValueError, TypeError), match="guard_scale"):
        scaler.load_state_dict(state)
    assert scaler.get_scale() == 65536.0


def test_a_ring_of_maxima_holds_no_nan() -> None:
    state = GradScaler("cpu", policy=Quantile(window=1500)).state_dict()
    state["gradscale"]["state"]["recent"][3] = math.nan
    with pytest.raises(ValueError, match=r"'recent'.* do not lie between"):
        GradScaler("cpu", policy=Quantile(window=1500)).load_state_dict(state)


def test_a_setting_that_no_policy_has_is_named() -> None:
    state = GradScaler("cpu").state_dict()
    state["gradscale"]["policy"]["config"]["speed"] = 3
    with pytest.raises(ValueError, match=r"`Dynamic` has no setting 'speed'. Drop it"):
        GradScaler("cpu").load_state_dict(state, configuration="restore")
    with pytest.raises(ValueError, match=r"`Dynamic\(growth_factor=0.5\)` must be finite and abov"):
        state["gradscale"]["policy"]["config"] = {"growth_factor": 0.5}
        GradScaler("cpu").load_state_dict(state, configuration="restore")


def test_a_setting_that_a_policy_cannot_do_without_is_named() -> None:
    state = GradScaler("cpu", policy=Static(8.0)).state_dict()
    del state["gradscale"]["policy"]["config"]["scale"]
    with pytest.raises(ValueError, match=r"`Static` needs `scale`, which the state does not have"):
        GradScaler("cpu").load_state_dict(state, configuration="restore")


@pytest.mark.parametrize("below", [0.5, (3,), ((3, True),), ((0.5, 2.0),), ((1, 2.0, 3),), None])
def test_a_scale_recovers_by_pairs_of_a_count_and_a_scale(below: Any) -> None:
    state = GradScaler("cpu", policy=POLICIES["Recovering"]).state_dict()
    state["gradscale"]["policy"]["config"]["below"] = below
    with pytest.raises(TypeError, match=r"`Recovering\(below=.*must hold pairs of a whole number"):
        GradScaler("cpu").load_state_dict(state, configuration="restore")


def test_a_plan_that_does_not_fit_its_graph_is_made_anew() -> None:
    state = Run(layerwise=True).train(5).scaler.state_dict()
    in_track("plan", "exponents", value=[0, 3])(state)
    run = Run(layerwise=True)
    run.scaler.load_state_dict(state)
    with pytest.warns(UserWarning, match="the saved plan of .* does not fit the graph of"):
        run.train(1)
    run.train(4)
    assert run.scaler.counters.steps == 10


def same(one: Any, other: Any) -> bool:
    """Bit for bit, NaN and the kinds of numbers included."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(
            one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or (one != one and other != other))


ODD: list[Any] = [
    None, True, False, -1, 0, 1, 7, 2**31 - 1, 2**31, 2**63, 10**400, -0.5, 0.0, 0.5, 2.0**-140,
    1e308, math.inf, -math.inf, math.nan, "", "abc", "nan", [], [[]], [1.0], {}, {"a": 1},
    torch.tensor(3.0), torch.ones(3), torch.tensor(math.nan), torch.ones(2, 2, dtype=torch.int64),
]  # fmt: skip


def mutated(state: dict[str, Any], pick: Callable[[int], int]) -> dict[str, Any]:
    """A deep copy with one entry, at any depth, exchanged, left out or moved elsewhere."""
    whole = held = copy.deepcopy(state)
    while True:
        names = list(held) if isinstance(held, dict) else list(range(len(held)))
        name = names[pick(len(names))]
        deeper = held[name]
        if isinstance(deeper, dict | list) and deeper and pick(5):
            held = deeper
            continue
        action = pick(6)
        if action == 0:
            del held[name]
        elif action == 1 and isinstance(held, dict):
            held[str(pick(9))] = held.pop(name)
        else:
            held[name] = copy.deepcopy(ODD[pick(len(ODD))])
        return whole


STATES = {
    name: Run(policy).train(4, bad=2).scaler.state_dict() for name, policy in POLICIES.items()
}
STATES["layerwise"] = Run(layerwise=True).train(6).scaler.state_dict()
# As a dictionary, which is read as well, so that its parts are changed too.
STATES["layerwise"]["gradscale"]["layerwise"]["tracks"] = json.loads(
    STATES["layerwise"]["gradscale"]["layerwise"]["tracks"]
)
STATES["torch"] = torch.amp.GradScaler("cpu").state_dict()


def check_loads_or_is_left_alone(
    state: dict[str, Any], run: Run, configuration: Any, about: str
) -> bool:
    before = copy.deepcopy(run.scaler.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            run.scaler.load_state_dict(state, configuration=configuration)
        except (ValueError, TypeError, RuntimeError) as error:
            assert "`" in str(error), f"{about}: {error!r}"
            assert same(run.scaler.state_dict(), before), about
            accepted = False
        else:
            accepted = True
            scale = run.scaler.get_scale()
            assert 2.0**-126 <= scale < math.inf, about
        steps = run.scaler.counters.steps
        run.train(3)
    assert run.scaler.counters.steps == steps + 3, about
    assert 2.0**-126 <= run.scaler.get_scale() < math.inf, about
    copy.deepcopy(run.scaler)
    return accepted


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_change_of_a_real_state_is_taken_whole_or_refused(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(STATES)))
    state = mutated(STATES[name], lambda count: data.draw(st.integers(0, count - 1)))
    layerwise = name == "layerwise"
    run = Run(POLICIES.get(name), layerwise=layerwise).train(data.draw(st.integers(0, 2)))
    configuration = data.draw(st.sampled_from(["keep", "restore"]))
    check_loads_or_is_left_alone(state, run, configuration, name)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_hundreds_of_hostile_states_are_taken_whole_or_refused(seed: int) -> None:
    chance = random.Random(seed)
    accepted = 0
    for trial in range(400):
        name = chance.choice(sorted(STATES))
        state = mutated(STATES[name], chance.randrange)
        if chance.random() < 0.3:
            state = mutated(state, chance.randrange) if state else state
        policy = POLICIES.get(chance.choice(sorted(POLICIES)) if chance.random() < 0.3 else name)
        run = Run(policy, layerwise=name == "layerwise").train(chance.randrange(2))
        configuration = chance.choice(["keep", "restore"])
        accepted += check_loads_or_is_left_alone(
            state, run, configuration, f"seed {seed}, trial {trial}, {name}, {configuration}"
        )
    assert 20 < accepted < 380


def test_every_policy_of_ours_is_tried() -> None:
    kinds = {type(policy).__name__ for policy in POLICIES.values()}
    ours = {
        name
        for name, value in vars(gradscale.policies).items()
        if isinstance(value, type) and issubclass(value, Policy) and value is not Policy
    }
    assert kinds == ours
