"""A plan: what it may hold, how it prints, how it survives a checkpoint."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscale.backward import BackwardGraph, ScalePlan

W = torch.ones(3, requires_grad=True)


def chain(length: int = 3) -> tuple[torch.Tensor, BackwardGraph]:
    h = W
    for _ in range(length):
        h = h.exp()
    loss = h.sum()
    return loss, BackwardGraph.of(loss)


def test_the_uniform_plan_is_zero_everywhere() -> None:
    _, graph = chain()
    plan = ScalePlan.uniform(graph)
    assert plan.exponents == (0, 0, 0, 0, 0) and plan.is_uniform
    assert plan.cuts(graph) == ()
    assert str(plan) == "1 group: 2^0 for 5 nodes"


def test_groups_print_at_the_loss_scale_the_largest_first() -> None:
    _, graph = chain()
    plan = ScalePlan.of(graph, {1: 8, 2: 8, 3: 8})
    assert plan.describe(log2_scale=5) == "2 groups: 2^13 for 3 nodes, 2^5 for 2 nodes"
    assert plan.groups == {8: (1, 2, 3), 0: (0, 4)}
    assert plan.cuts(graph) == (0, 3)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**31), st.integers(-60, 0), st.integers(0, 60))
def test_a_random_plan_is_valid_repeatable_and_survives_a_checkpoint(
    length: int, seed: int, low: int, high: int
) -> None:
    _, graph = chain(length)
    plan, again = (
        ScalePlan.random(graph, torch.Generator().manual_seed(seed), low, high) for _ in range(2)
    )
    plan.check(graph)
    assert plan == again and hash(plan) == hash(again)
    assert all(low <= k <= high for k in plan.exponents)
    file = io.BytesIO()
    torch.save(plan.to_dict(), file)
    file.seek(0)
    assert ScalePlan.from_dict(torch.load(file, weights_only=True)) == plan


def test_a_moved_leaf_is_refused() -> None:
    _, graph = chain()
    with pytest.raises(ValueError, match=r"puts leaf 4 .*AccumulateGrad.* at exponent 2"):
        ScalePlan.of(graph, {4: 2})


def test_a_moved_pin_is_refused_and_pinning_heals_it() -> None:
    _, graph = chain()
    plan = ScalePlan.of(graph, {1: 3, 2: 4})
    pinned = graph.pinning([2])
    with pytest.raises(ValueError, match=r"puts pinned node 2 \(ExpBackward0\).*plan.pinning"):
        plan.check(pinned)
    assert plan.pinning(pinned).exponents == (0, 3, 0, 0, 0)
    assert plan.pinning(graph) is plan


def test_a_plan_for_another_graph_is_refused() -> None:
    _, graph = chain(3)
    _, longer = chain(4)
    with pytest.raises(ValueError, match=r"5 exponents.*6 nodes.*Make a plan for every structure"):
        ScalePlan.uniform(graph).check(longer)


def test_an_exponent_is_a_whole_number_of_whatever_kind() -> None:
    assert ScalePlan((0, 5.0, torch.tensor(3)), "s").exponents == (0, 5, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"has 1.5 at node 1; an exponent must be a whole number"):
        ScalePlan((0, 1.5), "s")  # type: ignore[arg-type]


def test_exponents_that_no_multiplier_can_hold_are_refused() -> None:
    _, graph = chain()
    with pytest.raises(ValueError, match=r"has 64 at node 1; an exponent must lie within ±63"):
        ScalePlan.of(graph, {1: 64})
    with pytest.raises(ValueError, match=r"names node 9, but the graph has nodes 0 to 4"):
        ScalePlan.of(graph, {9: 1})


def test_a_state_that_lacks_a_key_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs \['signature'\]"):
        ScalePlan.from_dict({"exponents": [0]})
