"""Gradients that are overwritten without being asked: nothing else may hold their memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assertions import assert_same_gradients
from gradscale.backward import BackwardGraph, ScalePlan, Walk, rescale, walk
from gradscale.backward.multiply import UNSHARED, _holders
from gradscale.backward.new_gradients import is_new
from zoo import ZOO

SIZE = 6


class Mixed(nn.Module):
    """Norms, casts, products and sums in a random order, some weights met again."""

    def __init__(self, parts: list[str]) -> None:
        super().__init__()
        self.parts = parts
        self.linear, self.layer = nn.Linear(SIZE, SIZE), nn.LayerNorm(SIZE)
        self.batch, self.group = nn.BatchNorm1d(SIZE), nn.GroupNorm(2, SIZE)
        self.gain = nn.Parameter(torch.linspace(0.5, 2, SIZE))

    def forward(self, x: Tensor) -> Tensor:
        kinds: dict[str, Callable[[Tensor], Tensor]] = {
            "linear": self.linear,
            "layer": self.layer,
            "batch": self.batch,
            "group": self.group,
            "gain": lambda y: y * self.gain,
            "square": lambda y: y * y,
            "halve": lambda y: y * 0.5,
            "half": lambda y: y.bfloat16(),
            "single": lambda y: y.float(),
            "add": lambda y: y + self.gain,
            "view": lambda y: y.t().reshape(SIZE, -1).t(),
            "residual": lambda y: y + self.linear(y),
        }
        for part in self.parts:
            x = kinds[part](x)
        return x.float().sum()


PARTS = [
    "linear", "layer", "batch", "group", "gain", "square", "halve", "half", "single", "add",
    "view", "residual",
]  # fmt: skip


def is_alone(grad: Tensor) -> bool:
    """As `is_unshared`, of a gradient that may be all of another one, reshaped, which it holds."""
    base = grad._base
    room = (0, 0, 0) if base is None else (0, 0, 1)
    return (base is None or base.numel() == grad.numel()) and all(
        found <= most + more
        for found, most, more in zip(_holders(grad), UNSHARED, room, strict=True)
    )


def held_elsewhere(walked: Walk, run: Callable[[], None]) -> list[str]:
    """The nodes that hand out, as new, a gradient which something else holds."""
    structure, wrong = walked.graph.structure, list[str]()

    def asking(name: str, outputs: list[int]) -> Any:
        def ask(produced: tuple[Tensor | None, ...], _: Any) -> None:
            for output in outputs:
                grad = produced[output]
                if grad is not None and not is_alone(grad):
                    wrong.append(name)

        return ask

    for node, name in enumerate(structure.names):
        edges = [structure.edges[number] for number in walked.graph.edges_from(node)]
        outputs = [edge.output for edge in edges if is_new(structure, edge)]
        if outputs:
            walked.nodes[node].register_hook(asking(name, outputs))
    run()
    return wrong


@settings(max_examples=40, deadline=None)
@given(
    parts=st.lists(st.sampled_from(PARTS), min_size=1, max_size=8),
    seed=st.integers(0, 2**31),
)
def test_what_is_new_is_held_by_nothing_else_and_keeps_its_bits(parts, seed):
    torch.manual_seed(0)
    model, x = Mixed(parts), torch.randn(4, SIZE)
    weights = list(model.parameters())

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):  # in float16 a plan may save what is flushed
            return model(x) + model.gain.sum()

    def gradients(loss: Tensor, *, again: bool = False) -> list[Tensor | None]:
        for weight in weights:
            weight.grad = None
        loss.backward(retain_graph=again)
        return [weight.grad for weight in weights]

    walked = walk(loss_to_ask := loss())
    assert held_elsewhere(walked, lambda: loss_to_ask.backward(retain_graph=True)) == []
    del walked

    expected, planned = gradients(loss()), loss()
    graph = BackwardGraph.of(planned)
    steps = torch.randint(-1, 2, (len(graph),), generator=torch.Generator().manual_seed(seed))
    plan = ScalePlan(tuple(steps.tolist()), graph.signature).pinning(graph)
    with rescale(graph, plan):
        assert_same_gradients(gradients(planned, again=True), expected)
        assert_same_gradients(gradients(planned), expected)


@pytest.mark.parametrize("name", sorted(set(ZOO) - {"compiled_blocks"}))
def test_what_is_new_is_held_by_nothing_else_in_any_model(name: str) -> None:
    torch.manual_seed(0)
    losses = ZOO[name](torch.float32, 3).losses()
    walked = walk(losses)
    assert held_elsewhere(walked, lambda: torch.autograd.backward(losses)) == []


@pytest.mark.parametrize("returned", [False, True], ids=["keeps", "returns its own"])
def test_what_an_earlier_hook_has_seen_is_not_overwritten(returned: bool) -> None:
    norm = nn.LayerNorm(SIZE)
    kept: list[Tensor] = []

    def watch(produced: tuple[Tensor, ...], _: Any) -> Any:
        kept.append(torch.full_like(produced[1], 3.0) if returned else produced[1])
        kept.append(kept[0].clone())
        return (produced[0], kept[0], produced[2]) if returned else None

    x = torch.randn(4, SIZE, requires_grad=True)
    loss = norm(x).square().sum()
    graph, nodes = walk(loss)
    node = graph.names.index("NativeLayerNormBackward0")
    nodes[node].register_hook(watch)
    with rescale(Walk(graph, nodes), ScalePlan.of(graph, {node: 5})):
        loss.backward()
    assert torch.equal(kept[0], kept[1])
    assert torch.equal(norm.weight.grad, kept[1] / 32)
