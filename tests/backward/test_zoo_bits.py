"""The central test: any plan leaves every parameter gradient bit for bit what it is without."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from assertions import assert_same_gradients
from gradscale.backward import BackwardGraph, LossEntry, ScalePlan, Walk, rescale
from zoo import ZOO, Trial

pytestmark = [
    # Torch's own: dynamo looks at `.grad` of what it traces.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


def plain_gradients(trial: Trial) -> list[Tensor | None]:
    torch.autograd.backward(trial.losses())
    return trial.gradients()


def planned_gradients(trial: Trial, seed: int) -> tuple[list[Tensor | None], int]:
    losses = trial.losses()
    graph = BackwardGraph.of(losses)
    plan = ScalePlan.random(graph, torch.Generator().manual_seed(seed))
    handle = rescale(graph, plan)
    torch.autograd.backward(losses)
    return trial.gradients(), handle.edges


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", ZOO)
def test_a_random_plan_leaves_every_gradient_its_bits(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    trial = ZOO[name](dtype, 3)
    expected = plain_gradients(trial)
    assert any(grad is not None for grad in expected)
    for seed in range(4):
        found, edges = planned_gradients(trial, seed)
        assert edges > 0
        assert_same_gradients(found, expected)


def test_the_zoo_holds_every_kind_the_mechanism_claims() -> None:
    assert len(ZOO) >= 19


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(set(ZOO) - {"compiled_blocks"})),
    size=st.integers(1, 5),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_no_model_size_or_plan_changes_a_bit(
    name: str, size: int, seed: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(seed)
    if name == "resnet":
        size += 1  # batch norm refuses a single value per channel
    trial = ZOO[name](dtype, size)
    expected = plain_gradients(trial)
    assert_same_gradients(planned_gradients(trial, seed)[0], expected)


@pytest.mark.parametrize("name", sorted(set(ZOO) - {"compiled_blocks", "gradient_penalty"}))
def test_accumulated_gradients_keep_their_bits(name: str) -> None:
    trial = ZOO[name](torch.float32, 3)
    for _ in range(3):
        torch.autograd.backward(trial.losses())
    expected = trial.gradients()
    for seed in range(3):
        losses = trial.losses()
        graph = BackwardGraph.of(losses)
        rescale(graph, ScalePlan.random(graph, torch.Generator().manual_seed(seed)))
        torch.autograd.backward(losses)
    assert_same_gradients(trial.gradients(), expected)


@pytest.mark.parametrize("name", sorted(set(ZOO) - {"compiled_blocks"}))
def test_a_loss_entry_gives_the_same_bits(name: str) -> None:
    trial = ZOO[name](torch.float32, 3)
    expected = plain_gradients(trial)
    begun: list[int] = []

    def begin(walk: Walk) -> None:
        plan = ScalePlan.random(walk.graph, torch.Generator().manual_seed(7))
        begun.append(rescale(walk, plan).edges)

    entry = LossEntry(begin)
    sum(entry.watch(loss) for loss in trial.losses()).backward()
    assert len(begun) == 1 and begun[0] > 0
    assert_same_gradients(trial.gradients(), expected)
