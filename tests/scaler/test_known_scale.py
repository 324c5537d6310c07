import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gradscale
from gradscale.policies.policy import Observation, advance
from gradscale.scaler import known_scale
from gradscale.scaler.known_scale import COPY_AFTER, KnownScale, lowest_factor


class SlowCopy(known_scale._Copy):
    """What an accelerator sends: the value of now, some steps later."""

    steps = 0

    def __init__(self, scale):
        super().__init__(scale.clone())

    def moved(self, factor, cap):
        super().moved(factor, cap)
        self.steps += 1

    @property
    def arrived(self):
        return self.steps == 3


@pytest.fixture
def copies(monkeypatch):
    monkeypatch.setattr(known_scale, "_Copy", SlowCopy)
    monkeypatch.setattr(known_scale, "_travels", lambda scale: True)
    monkeypatch.setattr(known_scale, "_capturing", lambda scale: False)


def run(known, policy, state, found_inf, clean):
    before = known.at_least(state.scale)
    after = advance(policy, state, Observation(torch.tensor(found_inf)))
    for old, new in zip(state, after, strict=True):
        old.copy_(new)
    cap = getattr(policy, "max_scale", None)
    known.moved(state.scale, lowest_factor(policy, clean), math.inf if cap is None else cap)
    return before


POLICIES = [
    gradscale.Dynamic(growth_interval=2),
    gradscale.Dynamic(100.0, 1.7, 0.3, 3, max_scale=900.0),
    gradscale.Static(3.0),
    gradscale.policies.LogNormal(),
]
ACTIONS = ["clean", "overflow", "clean, unread", "meddle", "read"]


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize("policy", POLICIES[:3])
def test_the_bound_is_never_above_the_scale(policy):
    @given(actions=st.lists(st.sampled_from(ACTIONS), max_size=60))
    def check(actions):
        known, state = KnownScale(), policy.init()
        known.note(state.scale, state.scale.item())
        for action in actions:
            if action == "meddle":
                state.scale.mul_(0.25).clamp_(min=2.0**-100)
            elif action == "read":
                known.note(state.scale, state.scale.item())
            else:
                run(known, policy, state, float(action == "overflow"), action == "clean")
            assert known.at_least(state.scale) <= state.scale.item()

    check()


@pytest.mark.usefixtures("copies")
def test_news_keep_the_bound_near_a_scale_that_stands():
    policy = gradscale.Dynamic(growth_interval=10**6)
    known, state = KnownScale(), policy.init()
    known.note(state.scale, 2.0**16)
    bounds = [run(known, policy, state, 0.0, False) for _ in range(200)]
    assert min(bounds) > 2.0 ** (16 - 2 * COPY_AFTER)


@pytest.mark.usefixtures("copies")
def test_a_stranger_in_the_tensor_is_noticed_and_forgotten():
    policy = gradscale.Dynamic(growth_interval=10**6)
    known, state = KnownScale(), policy.init()
    known.note(state.scale, 2.0**16)
    state.scale.fill_(2.0**12)
    assert known.at_least(state.scale) == 0
    bounds = [run(known, policy, state, 0.0, False) for _ in range(8)]
    assert bounds[0] == 0 and 2.0**5 < bounds[-1] < 2.0**12


@pytest.mark.usefixtures("copies")
def test_another_tensor_is_another_scale():
    known, scale = KnownScale(), torch.tensor(8.0)
    known.note(scale, 8.0)
    assert known.at_least(scale) == 8 and known.at_least(scale.clone()) == 0


def test_a_capture_ends_all_knowledge(monkeypatch):
    known, scale = KnownScale(), torch.tensor(8.0)
    known.note(scale, 8.0)
    monkeypatch.setattr(known_scale, "_capturing", lambda scale: True)
    assert known.at_least(scale) == 0
    monkeypatch.setattr(known_scale, "_capturing", lambda scale: False)
    known.note(scale, 8.0)
    assert known.at_least(scale) == 0


@pytest.mark.usefixtures("copies")
def test_a_copy_under_way_is_not_asked_about_during_a_capture(monkeypatch):
    """The question would break the capture."""
    policy, known = gradscale.Dynamic(), KnownScale()
    state = policy.init()
    while known._copy is None:
        run(known, policy, state, 0.0, False)
    monkeypatch.setattr(SlowCopy, "arrived", property(lambda self: pytest.fail("asked")))
    monkeypatch.setattr(known_scale, "_capturing", lambda scale: True)
    for _ in range(2 * COPY_AFTER):
        run(known, policy, state, 0.0, False)
    assert known._copy is None


def test_of_other_policies_nothing_is_known():
    assert lowest_factor(POLICIES[3], clean=True) == 0


@pytest.mark.cuda
def test_a_copy_of_the_scale_arrives_without_waiting():
    policy = gradscale.Dynamic(growth_interval=10**6)
    known, state = KnownScale(), policy.init((), "cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(40):
            known.at_least(state.scale)
            policy.update_(state, Observation(torch.zeros((), device="cuda")), None, True)
            known.moved(state.scale, lowest_factor(policy, False))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert 0 < known.at_least(state.scale) <= 2.0**16
