"""What holds for every policy, over one table of all of them."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import io
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

import gradscale.policies
from gradscale.policies import (
    Band,
    Dynamic,
    Guarded,
    LastMaximum,
    LogNormal,
    Observation,
    Policy,
    Quantile,
    Recovering,
    Static,
    TwoSided,
    advance,
    presets,
)
from policies.sequences import Step, observe, observe_losses, only, sequences, steps, trajectory

SMALL = {"growth_interval": 2}
POLICIES: dict[str, Policy] = {
    "Static": Static(1024.0),
    "Dynamic": Dynamic(),
    "Dynamic, short interval": Dynamic(growth_interval=2),
    "Dynamic, odd factors": Dynamic(growth_factor=1.3, backoff_factor=0.7, growth_interval=1),
    "Dynamic, bounded": Dynamic(growth_interval=1, min_scale=2.0**12, max_scale=2.0**17),
    "Dynamic, near the floor": Dynamic(init_scale=2.0**-124, growth_interval=2),
    "Dynamic, near the top": Dynamic(init_scale=2.0**126, growth_interval=1),
    "Dynamic, hysteresis": Dynamic(growth_interval=2, hysteresis=3),
    "Dynamic, consecutive": Dynamic(growth_interval=2, hysteresis=2, hysteresis_refill="clean"),
    "Dynamic, every second": Dynamic(hysteresis=2, hysteresis_refill="clean_or_backoff"),
    "Dynamic, tolerant": Dynamic(growth_interval=2, tolerance=0.3),
    "Dynamic, moving window": Dynamic(growth_interval=2, window_follows_scale=True),
    "LastMaximum": LastMaximum(),
    "LastMaximum, e4m3": LastMaximum(format="e4m3", headroom=0),
    "LogNormal": LogNormal(),
    "LogNormal, unrounded": LogNormal(power_of_two=False, headroom=0.5),
    "Quantile": Quantile(),
    "Quantile, small": Quantile(overflow_share=0.2, window=7, power_of_two=False),
    "Band": Band(),
    "TwoSided": TwoSided(),
    "Recovering": Recovering(Dynamic(init_scale=0.25), below=((2, 1.0), (3, 4.0))),
    "Recovering, bounded": Recovering(
        Dynamic(init_scale=0.5, min_scale=0.5, max_scale=1.5), below=((1, 8.0),)
    ),
    "Guarded(LastMaximum)": Guarded(LastMaximum(), Dynamic(growth_interval=2)),
    "Guarded(LogNormal)": Guarded(LogNormal()),
    "Guarded(Quantile)": Guarded(Quantile(window=999)),
    "Guarded(TwoSided)": Guarded(TwoSided()),
} | {f"presets.{name}": make() for name, make in presets.PRESETS.items()}

every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
few = settings(max_examples=15, deadline=None)


def equal(left: Any, right: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_every_policy_class_is_in_the_table() -> None:
    classes = {
        value
        for value in vars(gradscale.policies).values()
        if inspect.isclass(value) and issubclass(value, Policy) and not inspect.isabstract(value)
    }
    assert classes == {type(policy) for policy in POLICIES.values()}


@every_policy
@few
@given(run=sequences(25))
def test_the_scale_is_a_positive_normal_float32(policy: Policy, run: list[Step]) -> None:
    for state in [policy.init(), *trajectory(policy, run)]:
        scale = state[0]
        assert type(state)._fields[0] == "scale"
        assert scale.dtype == torch.float32
        assert torch.isfinite(scale) and scale >= 2.0**-126


@every_policy
@few
@given(run=sequences(25))
def test_an_overflow_never_raises_the_scale(policy: Policy, run: list[Step]) -> None:
    before = policy.init().scale
    for step, state in zip(run, trajectory(policy, run), strict=True):
        assert state.scale <= before or not step.overflow
        before = state.scale


@every_policy
@few
@given(run=sequences(5))
def test_update_leaves_its_arguments_alone(policy: Policy, run: list[Step]) -> None:
    state = policy.init()
    for step in run:
        observation = observe(step)
        tensors = [*state, *observation]
        copies, versions = [t.clone() for t in tensors], [t._version for t in tensors]
        after = policy.update(state, observation)
        assert equal(tensors, copies)
        assert [t._version for t in tensors] == versions
        assert not {t.data_ptr() for t in after} & {t.data_ptr() for t in tensors}
        state = after


@every_policy
@few
@given(data=st.data(), losses=st.integers(1, 3))
def test_several_losses_behave_as_each_alone(
    policy: Policy, data: st.DataObject, losses: int
) -> None:
    rows = data.draw(
        st.lists(st.lists(steps(), min_size=losses, max_size=losses), min_size=1, max_size=8)
    )
    together = policy.init((losses,))
    alone = [policy.init() for _ in range(losses)]
    for row in rows:
        together = policy.update(together, only(policy, observe_losses(row, (losses,))))
        alone = [
            policy.update(state, only(policy, observe(step)))
            for state, step in zip(alone, row, strict=True)
        ]
        for index, state in enumerate(alone):
            assert equal([field[index] for field in together], state)


@every_policy
@few
@given(run=sequences(6), more=sequences(6))
def test_the_state_survives_a_dictionary_and_a_pickle(
    policy: Policy, run: list[Step], more: list[Step]
) -> None:
    state = trajectory(policy, run)[-1]
    file = io.BytesIO()
    torch.save(state._asdict(), file)
    file.seek(0)
    loaded = policy.init()._replace(**torch.load(file, weights_only=True))
    for other in (loaded, pickle.loads(pickle.dumps(state)), copy.deepcopy(state)):
        one, two = state, other
        for step in more:
            observation = only(policy, observe(step))
            one, two = policy.update(one, observation), policy.update(two, observation)
            assert equal(one, two)


@every_policy
def test_a_policy_works_with_what_it_needs_and_asks_for_it_otherwise(policy: Policy) -> None:
    state, full = policy.init(), observe(Step(False, 1.0, {0: 1}))
    policy.update(state, only(policy, full))
    for need in policy.needs:
        name = type(policy.policy if isinstance(policy, Guarded) else policy).__name__
        with pytest.raises(
            ValueError, match=rf"`{name}` needs `{need}`.*lacks.*`Observation\({need}="
        ):
            policy.update(state, full._replace(**{need: None}))


@every_policy
def test_no_tensor_is_read_on_the_host(policy: Policy) -> None:
    with FakeTensorMode():
        state = policy.init((2,))
        seen = Observation(torch.zeros(2), torch.ones(2), torch.ones(2, 277, dtype=torch.int64))
        for _ in range(2):
            state = advance(policy, state, only(policy, seen), ignore=torch.zeros(2))
        assert state.scale.shape == (2,)


@every_policy
def test_update_compiles_into_one_graph(policy: Policy) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(policy.update, fullgraph=True, backend="eager")
    state = policy.init()
    for step in (Step(False, 0.3, {-2: 5}), Step(True, 7.0, {2: 1})):
        observation = only(policy, observe(step))
        after = policy.update(state, observation)
        assert equal(compiled(state, observation), after)
        state = after


@every_policy
@few
@given(run=sequences(6))
def test_an_ignored_step_leaves_the_state_as_it_was(policy: Policy, run: list[Step]) -> None:
    state = trajectory(policy, run)[-1]
    bad = only(policy, observe(Step(True, 3.0, {1: 1})))
    assert equal(advance(policy, state, bad, ignore=torch.tensor(1.0)), state)
    assert equal(advance(policy, state, bad, ignore=torch.tensor(0.0)), policy.update(state, bad))


@every_policy
def test_a_policy_is_a_frozen_value(policy: Policy) -> None:
    assert dataclasses.replace(policy) == policy == pickle.loads(pickle.dumps(policy))
    assert type(policy).__name__ in repr(policy)
    assert hash(policy) == hash(copy.deepcopy(policy))
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.scale = 1.0  # type: ignore[attr-defined]
