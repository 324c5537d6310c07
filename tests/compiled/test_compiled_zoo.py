"""A plan inside a compiled graph gives the bits of the eager run under an eager plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from assertions import assert_same_gradients
from expanded_gradients import EXPANDING, Gain
from gradscale.backward import BackwardGraph, ScalePlan, Walk, rescale, walk
from gradscale.backward.measure import measure
from gradscale.backward.measure_places import multiplies
from gradscale.backward.measurements import Counts
from zoo import ZOO, Trial

pytestmark = [
    pytest.mark.usefixtures("wish"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]

FIRST = ["mlp", "resnet", "attention", "unrolled_lstm_cell", "unet", "routed_mixture"]
# torch compiles no second derivative.
REST = sorted(set(ZOO) - {*FIRST, "gradient_penalty"})
MODELS = [*FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)]


def compiled(trial: Trial, backend: str = "aot_eager") -> Trial:
    compile: Any = torch.compile
    return Trial(trial.parameters, compile(trial.losses, backend=backend))


def planned(trial: Trial, seed: int) -> tuple[list[Tensor | None], Walk]:
    losses = trial.losses()
    walked = walk(losses)
    plan = ScalePlan.random(walked.graph, torch.Generator().manual_seed(seed))
    assert rescale(walked, plan).edges > 0
    torch.autograd.backward(losses)
    return trial.gradients(), walked


@pytest.mark.parametrize("name", MODELS)
def test_random_plans_inside_give_the_bits_of_random_plans_in_the_eager_run(name: str) -> None:
    torch.manual_seed(0)
    eager = ZOO[name](torch.float32, 3)
    inside = compiled(eager)
    expected, _ = planned(eager, 0)
    for seed in range(4):
        found, walked = planned(inside, seed)
        # torch leaves some of the zoo's losses to the eager run: cuDNN-like recurrences.
        assert name == "lstm" or len(walked.graph.structure.inner_edges) > 0
        assert "CompiledFunctionBackward" not in walked.graph.names
        assert_same_gradients(found, expected)


@pytest.mark.parametrize("loss", EXPANDING)
@pytest.mark.parametrize("behind", [Gain, partial(nn.BatchNorm2d, 6)], ids=["gain", "norm"])
def test_expanded_gradients_inside_keep_their_bits(
    behind: Callable[[], nn.Module], loss: str
) -> None:
    torch.manual_seed(0)
    model, x = behind(), torch.randn(4, 6, 5, 7)
    eager = Trial(list(model.parameters()), lambda: [EXPANDING[loss](model(x))])
    torch.autograd.backward(eager.losses())
    expected, inside = eager.gradients(), compiled(eager)
    for seed in range(3):
        found, walked = planned(inside, seed)
        assert len(walked.graph.structure.inner_edges) > 0
        assert_same_gradients(found, expected)


def counted(trial: Trial) -> tuple[BackwardGraph, Counter[tuple[str, str, Counts]]]:
    losses = trial.losses()
    walked = walk(losses)
    measuring = measure(walked, scale=8.0)
    torch.autograd.backward(losses, [torch.full_like(loss, 8.0) for loss in losses])
    trial.gradients()
    graph, records = walked.graph, measuring.result().records
    return graph, Counter((graph.names[r.node], r.kind, r.counts) for r in records)


@pytest.mark.parametrize("name", FIRST)
def test_a_measurement_inside_counts_what_the_eager_run_counts_at_every_product(name: str) -> None:
    torch.manual_seed(0)
    eager = ZOO[name](torch.bfloat16, 3)
    _, expected = counted(eager)
    _, found = counted(compiled(eager))
    arrived = [record for record in expected if record[1] == "arrived" and multiplies(record[0])]
    assert arrived
    for record in arrived:
        assert found[record] == expected[record], record


@pytest.mark.parametrize("name", ["mlp", "routed_mixture"])
def test_where_no_sum_passes_unchanged_every_record_is_that_of_the_eager_run(name: str) -> None:
    torch.manual_seed(0)
    eager = ZOO[name](torch.bfloat16, 3)
    graph, expected = counted(eager)
    inside, found = counted(compiled(eager))
    assert found == expected
    assert Counter(inside.names) == Counter(graph.names)


def test_a_pass_that_carries_no_plan_is_plain_after_one_that_did() -> None:
    torch.manual_seed(0)
    trial = compiled(ZOO["mlp"](torch.float32, 3))
    torch.autograd.backward(trial.losses())
    expected = trial.gradients()
    planned(trial, 0)
    torch.autograd.backward(trial.losses())
    assert_same_gradients(trial.gradients(), expected)


INDUCTOR = ["mlp", "resnet", "attention", "unrolled_lstm_cell", "unet", "routed_mixture"]


@pytest.mark.slow
@pytest.mark.parametrize("name", INDUCTOR)
def test_inductor_gives_its_own_bits_under_every_plan(name: str) -> None:
    torch.manual_seed(0)
    trial = compiled(ZOO[name](torch.float32, 3), "inductor")
    torch.autograd.backward(trial.losses())
    expected = trial.gradients()
    for seed in range(4):
        found, walked = planned(trial, seed)
        assert walked.graph.structure.inner_edges
        assert_same_gradients(found, expected)


def at_products(trial: Trial) -> dict[str, list[Counts]]:
    """What arrived at matrix products, by the name of their node, the largest first."""
    found: dict[str, list[Counts]] = {}
    for (name, kind, counts), times in counted(trial)[1].items():
        if kind == "arrived" and multiplies(name):
            found.setdefault(name, []).extend([counts] * times)
    return {name: sorted(each, key=lambda c: (c.numel, c.amax)) for name, each in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", INDUCTOR)
def test_a_measurement_under_inductor_differs_from_the_eager_one_by_rounding(name: str) -> None:
    torch.manual_seed(0)
    eager = ZOO[name](torch.bfloat16, 3)
    expected, found = at_products(eager), at_products(compiled(eager, "inductor"))
    assert {n: len(each) for n, each in found.items()} == {n: len(e) for n, e in expected.items()}
    for one, two in ((a, b) for n in expected for a, b in zip(expected[n], found[n], strict=True)):
        assert two.numel == one.numel
        assert two.amax == pytest.approx(one.amax, rel=2.0**-5)
