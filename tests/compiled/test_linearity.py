"""An operator that counts as linear is: checked against what it computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from gradscale.compiled.linearity import is_linear, is_zero, operator_name

aten = torch.ops.aten
Operator = Callable[[Tensor, Tensor], Tensor]
INDEX = torch.tensor([[0, 1, 2], [1, 0, 1], [2, 2, 0]])
MASK = torch.tensor([True, False, True])


def zeros() -> Tensor:
    return torch.zeros(3, 3)


LINEAR: dict[str, Operator] = {
    "mul": lambda g, x: g * x,
    "mul_by_number": lambda g, x: g * 3.0,
    "div": lambda g, x: g / x,
    "neg": lambda g, x: -g,
    "sub_of_two": lambda g, x: g - g.t(),
    "mm_first": lambda g, x: g @ x,
    "mm_second": lambda g, x: x @ g,
    "addmm_of_two": lambda g, x: torch.addmm(g, g, x),
    "addmm_to_zeros": lambda g, x: torch.addmm(zeros(), x, g),
    "sum": lambda g, x: g.sum(1),
    "mean": lambda g, x: g.mean(),
    "cast": lambda g, x: g.double(),
    "where_or_zero": lambda g, x: torch.where(x > 0, g, 0.0),
    "where_or_zeros": lambda g, x: torch.where(x > 0, zeros(), g),
    "masked_fill": lambda g, x: g.masked_fill(x > 0, 0.0),
    "cat_with_zeros": lambda g, x: torch.cat([g, zeros()]),
    "index_put_into_zeros": lambda g, x: zeros().index_put([MASK.nonzero()[:, 0]], g[:2]),
    "scatter_add": lambda g, x: zeros().scatter_add(0, INDEX, g),
    "slice_scatter": lambda g, x: zeros().slice_scatter(g[:2], 0, 0, 2),
    "pad": lambda g, x: aten.constant_pad_nd(g, [1, 1]),
    "copy": lambda g, x: aten.copy(torch.empty(3, 3), g),
    "lerp": lambda g, x: torch.lerp(g, g.t(), x),
    "cumsum": lambda g, x: g.flip(0).cumsum(0).flip(0),
    "softmax_backward": lambda g, x: aten._softmax_backward_data(g, x.softmax(1), 1, x.dtype),
    "threshold_backward": lambda g, x: aten.threshold_backward(g, x, 0),
    "layer_norm_backward": lambda g, x: aten.native_layer_norm_backward(
        g, x, [3], x.mean(1, True), x.var(1, keepdim=True), None, None, [True, False, False]
    )[0],
    "solve_triangular": lambda g, x: torch.linalg.solve_triangular(x.triu(), g, upper=True),
}

NOT_LINEAR: dict[str, Operator] = {
    "square": lambda g, x: g * g,
    "divisor": lambda g, x: x / g,
    "add_of_another": lambda g, x: g + x,
    "add_of_a_number": lambda g, x: g + 1.0,
    "sign": lambda g, x: g.sign(),
    "clamp": lambda g, x: g.clamp(-1, 1),
    "pow": lambda g, x: g**2,
    "norm": lambda g, x: g / g.norm(),
    "round": lambda g, x: g.round(),
    "where_or_one": lambda g, x: torch.where(x > 0, g, 1.0),
    "where_by_itself": lambda g, x: torch.where(g > 1, g, 0.0),
    "masked_fill_with_one": lambda g, x: g.masked_fill(x > 0, 1.0),
    "pad_with_one": lambda g, x: aten.constant_pad_nd(g, [1, 1], 1.0),
    "index_put_into_another": lambda g, x: x.index_put([MASK.nonzero()[:, 0]], g[:2]),
    "addmm_to_another": lambda g, x: torch.addmm(x, x, g),
    "activation": lambda g, x: g.sigmoid(),
    "saved_output": lambda g, x: aten.threshold_backward(x, g, 0),
}


def arguments() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 3, generator=generator), torch.randn(3, 3, generator=generator)


def all_linear(operator: Operator) -> bool:
    """Whether every operator of a traced function that reads its first argument is linear in it."""
    g, x = arguments()
    graph = make_fx(operator)(g, x).graph
    held: dict[fx.Node, None] = {next(iter(graph.nodes)): None}
    verdicts: list[bool] = []
    for node in graph.nodes:
        if node.op == "call_function" and any(source in held for source in node.all_input_nodes):
            verdicts.append(is_linear(node, held))
            held[node] = None
    assert verdicts
    return all(verdicts)


def scales(operator: Operator) -> bool:
    """Whether 2^k times the first argument gives 2^k times the result, bit for bit."""
    g, x = arguments()
    results = [operator(g * 2.0**k, x) / 2.0**k for k in (-3, 0, 7)]
    return all(torch.equal(result, results[1]) for result in results)


@pytest.mark.parametrize("name", LINEAR)
def test_what_counts_as_linear_scales_with_its_gradient(name: str) -> None:
    assert all_linear(LINEAR[name])
    assert scales(LINEAR[name])


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_what_does_not_scale_never_counts_as_linear(name: str) -> None:
    assert not scales(NOT_LINEAR[name])
    assert not all_linear(NOT_LINEAR[name])


def test_an_operator_of_another_library_is_no_linear_one_whatever_it_is_called() -> None:
    library = torch.library.Library("gradscale_test_linearity", "DEF")
    library.define("neg(Tensor x) -> Tensor")
    library.impl("neg", torch.neg, "CompositeExplicitAutograd")
    torch.library.register_fake("gradscale_test_linearity::neg", torch.empty_like, lib=library)
    traced = make_fx(lambda g: torch.ops.gradscale_test_linearity.neg(g))(torch.randn(2))
    nodes = list(traced.graph.nodes)
    assert operator_name(nodes[1]) == ""
    assert not is_linear(nodes[1], {nodes[0]: None})


def test_zeros_are_known_through_views_and_casts() -> None:
    def function(x: Tensor) -> list[Tensor]:
        return [
            torch.zeros(4).view(2, 2).t().double(),
            torch.full((2,), 0.0).expand(2, 2),
            x.new_zeros(2),
            torch.ones(2),
            x.clone(),
        ]

    graph = make_fx(function)(torch.randn(2)).graph
    returned = next(iter(reversed(graph.nodes))).args[0]
    assert [is_zero(value) for value in returned] == [True, True, True, False, False]  # type: ignore[union-attr]
