"""Multiplies each gradient that crosses between two nodes by a factor known at run time."""

from __future__ import annotations

from typing import cast

import torch
from torch import fx
from torch._ops import OpOverload
from torch.fx.node import Argument, map_arg

from gradscale.compiled.part import CompiledPart, Crossing

aten = torch.ops.aten
# torch tells saved tensors, which keep their place in memory, from gradients by this word.
FACTORS = "tangents_gradscale_factors"
_VIEWS = (
    aten.expand.default,
    aten.permute.default,
    aten.squeeze.dims,
    aten.t.default,
    aten.transpose.int,
    aten.unsqueeze.default,
    aten.view.default,
)


def multiply_crossings(graph: fx.Graph, part: CompiledPart) -> list[fx.Node]:
    """Adds a last input of shape `(crossings,)`, float32: each crossing is multiplied by its own.

    A product is computed in float32 at least and rounded once to the gradient's own dtype, so that
    a factor may lie beyond the range of a half format.

    Args:
        graph: the traced backward pass; changed in place.
        part: of this graph.

    Returns:
        For each crossing the operator that gives it as it arrives.
    """
    nodes = {node.name: node for node in graph.nodes}
    factors = _placeholder(graph, part)
    products: list[fx.Node] = []
    for place, crossing in enumerate(part.crossings):
        value = nodes[crossing.value]
        readers = [nodes[name] for name in crossing.readers]
        leaves = readers[0].op == "output"
        with graph.inserting_before(value.next if leaves else readers[0]):
            products.append(product := _product(graph, value, factors, place))
        for reader in readers:
            if leaves:
                _replace_output(reader, crossing, product)
            else:
                reader.replace_input_with(value, product)
    return products


def factors_of(graph: fx.Graph) -> torch.Tensor:
    """The fake tensor that stands for the factors of a graph."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    return inputs[-1].meta["val"]


def _placeholder(graph: fx.Graph, part: CompiledPart) -> fx.Node:
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    with graph.inserting_after(inputs[-1]):
        factors = graph.placeholder(FACTORS)
    gradient = next(node for node in inputs if isinstance(node.meta.get("val"), torch.Tensor))
    with gradient.meta["val"].fake_mode:
        shape = (len(part.crossings),)
        factors.meta["val"] = torch.empty(shape, dtype=torch.float32, device=part.device)
    return factors


def _product(graph: fx.Graph, value: fx.Node, factors: fx.Node, place: int) -> fx.Node:
    """The product; of an expanded gradient expanded, so that a sum over it keeps its order."""
    if value.target in _VIEWS and 0 in value.meta["val"].stride():
        product = _product(graph, cast(fx.Node, value.args[0]), factors, place)
        return _call(graph, cast(OpOverload, value.target), product, *value.args[1:])
    dtype = value.meta["val"].dtype
    factor = _call(graph, aten.select.int, factors, 0, place)
    if dtype.is_complex:  # part by part, so that signs of zero survive
        parts = _call(graph, aten.view_as_real.default, _resolved(graph, value))
        factor = _converted(graph, factor, parts.meta["val"].dtype)
        product = _call(graph, aten.mul.Tensor, parts, factor)
        return _call(graph, aten.view_as_complex.default, product)
    # Not by `promote_types`, which knows no formats of 8 bits.
    wide = dtype if dtype.itemsize > 4 else torch.float32
    value = _converted(graph, value, wide)
    product = _call(graph, aten.mul.Tensor, value, _converted(graph, factor, wide))
    return _converted(graph, product, dtype)


def _resolved(graph: fx.Graph, value: fx.Node) -> fx.Node:
    return _call(graph, aten.clone.default, value) if value.meta["val"].is_conj() else value


def _converted(graph: fx.Graph, value: fx.Node, dtype: torch.dtype) -> fx.Node:
    if value.meta["val"].dtype == dtype:
        return value
    return _call(graph, torch.ops.prims.convert_element_type.default, value, dtype)


def _call(graph: fx.Graph, target: OpOverload, *args: Argument) -> fx.Node:
    """An operator whose result has the shape and dtype that tracing would have noted."""
    node = graph.call_function(target, args)
    node.meta["val"] = target(*map_arg(args, traced_value))
    return node


def traced_value(node: fx.Node) -> Argument:
    """The fake tensor, or number, that stands for an operator's result."""
    return node.meta["val"]


def _replace_output(output: fx.Node, crossing: Crossing, product: fx.Node) -> None:
    values: list[Argument] = list(output.args[0])  # type: ignore[arg-type]
    values[crossing.place] = product
    output.args = (type(output.args[0])(values),)  # type: ignore[misc]
