"""Random training runs, as policies see them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st

from gradscale.histogram import EXPONENT_BINS, MIN_OCTAVE
from gradscale.policies import Observation, Policy


class Step(NamedTuple):
    """One step on the host: did it overflow, its largest gradient, its elements per octave."""

    overflow: bool
    amax: float
    counts: Mapping[int, int]


CLEAN = Step(False, 1.0, {0: 1})
OVERFLOW = Step(True, 1.0, {0: 1})


@st.composite
def steps(draw: st.DrawFn, counts_too: bool = True) -> Step:
    overflow = draw(st.sampled_from([False, False, False, True]))
    exponent = draw(st.integers(-140, 100))
    mantissa = draw(st.sampled_from([0.0, 1.0, 1.0, 1.5, 1.9999999]))
    octaves = st.integers(-149, 100)
    counts = draw(st.dictionaries(octaves, st.integers(1, 10**6), max_size=3)) if counts_too else {}
    return Step(overflow, mantissa * 2.0**exponent, counts)


def sequences(most: int = 40, counts_too: bool = True) -> st.SearchStrategy[list[Step]]:
    return st.lists(steps(counts_too), min_size=1, max_size=most)


def observe(step: Step) -> Observation:
    return observe_losses([step], ())


def observe_losses(row: list[Step], shape: tuple[int, ...]) -> Observation:
    """What the losses of one step saw, every field measured."""
    exponents = torch.zeros(len(row), EXPONENT_BINS, dtype=torch.int64)
    for index, step in enumerate(row):
        for octave, count in step.counts.items():
            exponents[index, octave - MIN_OCTAVE] = count
    return Observation(
        torch.tensor([float(step.overflow) for step in row]).reshape(shape),
        torch.tensor([step.amax for step in row], dtype=torch.float32).reshape(shape),
        exponents.reshape(*shape, EXPONENT_BINS),
    )


def only(policy: Policy, observation: Observation) -> Observation:
    """The observation without what the policy does not need."""
    return Observation(
        observation.found_inf,
        observation.amax if "amax" in policy.needs else None,
        observation.exponents if "exponents" in policy.needs else None,
    )


def trajectory(policy: Policy, run: list[Step]) -> list[Any]:
    """The states after each step of a run."""
    state, states = policy.init(), []
    # Long runs repeat the same two steps.
    seen = {
        id(step): only(policy, observe(step)) for step in {id(step): step for step in run}.values()
    }
    for step in run:
        state = policy.update(state, seen[id(step)])
        states.append(state)
    return states
