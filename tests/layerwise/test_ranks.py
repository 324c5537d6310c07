"""Layer-wise scaling in real processes over gloo: the same bits, plan and scale on every rank."""

from __future__ import annotations

import math
from typing import Any

import pytest

from layerwise_worker import (
    WRAPPERS,
    Build,
    ddp,
    different_graphs,
    fsdp1,
    fsdp2,
    no_loss_on_rank_one,
    plan_on_different_data,
    spoiled_on_rank_one,
    with_and_without,
)
from processes import ON_RANKS, on_two_ranks

pytestmark = ON_RANKS


@pytest.mark.parametrize("build", WRAPPERS)
def test_parameters_keep_their_bits_and_ranks_their_plan(build: Build) -> None:
    results = on_two_ranks(with_and_without, build)
    for plain, planned, _ in results:
        assert plain == planned and any(any(values) for values in plain)
    (_, _, first), (_, _, second) = results
    assert first == second
    exponents = {plan for plans, _ in first for plan, _ in plans}
    assert len(exponents) == 5 and sum(map(any, exponents)) == 4  # only the first is uniform


@pytest.mark.parametrize("build", WRAPPERS)
def test_ranks_with_different_data_plan_alike(build: Build) -> None:
    first, second = on_two_ranks(plan_on_different_data, build)
    assert first == second
    (exponents, frozen), *others = first[-1][0]
    assert any(exponents) and frozen is None and not others


# Step 6 does not measure, step 8 does; what a step measured is a plan one step later.
@pytest.mark.parametrize("at", [6, 8])
@pytest.mark.parametrize(
    ("build", "grouped"), [(ddp, False), (ddp, True), (fsdp2, False), (fsdp1, True)]
)
def test_an_overflow_on_one_rank_lowers_all_alike(build: Build, grouped: bool, at: int) -> None:
    first, second = on_two_ranks(spoiled_on_rank_one, build, at, 2.0**30, grouped)
    assert first == second
    *first, [(outliers, frozen)] = first
    assert outliers.reach > 0 and outliers.step == at and frozen is None
    assert [skipped for _, _, skipped in first] == [step == at for step in range(at + 4)]
    before, after = absolute(first[at - 1]), absolute(first[at + 1])
    changes = {a - b for a, b in zip(after, before, strict=True)}
    assert min(changes) < 0 and max(changes) <= 0


def absolute(state: Any) -> list[float]:
    """The exponent of every node, with that of the loss scale."""
    ((exponents, _),), scale, _ = state
    return [exponent + math.log2(scale) for exponent in exponents]


@pytest.mark.parametrize("at", [6, 8])
@pytest.mark.parametrize("grouped", [False, True])
def test_a_bad_loss_on_one_rank_moves_no_plan_anywhere(grouped: bool, at: int) -> None:
    first, second = on_two_ranks(spoiled_on_rank_one, ddp, at, float("nan"), grouped)
    assert first == second
    *first, [(outliers, _)] = first
    assert not any(outliers)
    assert [skipped for _, _, skipped in first] == [step == at for step in range(at + 4)]
    assert any(first[at - 1][0][0][0])
    assert first[at - 1][0] == first[at + 1][0]


@pytest.mark.parametrize("apart", [list(range(10)), [4], [5], [6, 7]])
def test_ranks_that_run_different_graphs_fall_back_and_say_so(apart: list[int]) -> None:
    plain = on_two_ranks(different_graphs, apart, False)
    planned = on_two_ranks(different_graphs, apart, True)
    for (without, _, _), (under, (frozen, _), said) in zip(plain, planned, strict=True):
        assert without == under
        if apart == [5]:  # by the time both ranks measure, at step 6, they are together again
            assert not any(frozen) and not said
            continue
        assert "ranks run different graphs" in frozen
        assert len(said) == 1 and "ranks run different graphs" in said[0]
    assert planned[0][1][1] == planned[1][1][1]


def test_a_rank_that_has_nothing_to_measure_keeps_nobody_waiting() -> None:
    first, _ = on_two_ranks(no_loss_on_rank_one)
    assert first == ["ranks run different graphs"]
