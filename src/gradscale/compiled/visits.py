"""A second form of a backward graph, in which hooks see what passes each inner node."""

from __future__ import annotations

from torch import fx
from torch.fx.node import map_arg

from gradscale.compiled.factors import multiply_crossings, traced_value
from gradscale.compiled.part import CompiledPart
from gradscale.compiled.under_way import VISIT


def with_visits(module: fx.GraphModule, part: CompiledPart) -> fx.GraphModule:
    """The same backward pass with factors, which shows the gradients of each inner node.

    Behind the outputs of the backward pass it has one for each call of `visit`.

    Args:
        module: the traced backward pass, before anything was added; left as it is.
        part: of this graph.
    """
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(module.graph, copied))
    nodes = {old.name: new for old, new in copied.items()}
    products = multiply_crossings(graph, part)
    order = {node: place for place, node in enumerate(graph.nodes)}
    shown: list[fx.Node] = []
    for inner in range(len(part.nodes)):
        arrived = _arrived(part, inner, nodes, products)
        produced = [nodes[part.crossings[place].value] for place in part.leaving[inner]]
        if arrived or produced:
            # Where everything that it shows has been computed.
            last = max(arrived + produced, key=lambda node: order[node])
            with graph.inserting_before(_following(last)):
                shown.append(graph.call_function(VISIT, (arrived, produced, inner)))
    for node in shown:
        node.meta["val"] = VISIT(*map_arg(node.args, traced_value))
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    # Among the results, or a compiler would drop calls that nobody reads.
    output.args = ((*output.args[0], *shown),)  # type: ignore[misc]
    return fx.GraphModule(module, graph)


def _arrived(
    part: CompiledPart, inner: int, nodes: dict[str, fx.Node], products: list[fx.Node]
) -> list[fx.Node]:
    """What arrives at each input: a crossing once it is multiplied, or the sum of several."""
    multiplied = {
        (crossing.target, crossing.value): product
        for crossing, product in zip(part.crossings, products, strict=True)
    }
    return [
        multiplied.get((inner, arriving.value), nodes[arriving.value])
        for arriving in part.nodes[inner].arrives
    ]


def _following(node: fx.Node) -> fx.Node:
    """What comes after a node; after all inputs, if it is one of them."""
    following = node.next
    while following.op == "placeholder":
        following = following.next
    return following
