"""Which operators of a traced backward pass make up one autograd node.

torch notes the sequence number of the autograd node that was running. The operators that share one
are a region, and where gradients of several nodes are added up, the sum belongs to the node that
it arrives at. Any division would do for a plan to be right, as long as gradients do not return to
a region that they have left; this one gives the nodes of the eager run.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable

from torch import fx

from gradscale.compiled.autograd_names import is_cast
from gradscale.compiled.gradients_of import TracedGradients
from gradscale.compiled.linearity import operator_name

Region = Hashable
LEAVES = "leaves"


def regions_of(gradients: TracedGradients, graph: fx.Graph) -> dict[fx.Node, Region]:
    """The region of every gradient and of everything that reads one.

    Regions of the form `(LEAVES, place)` stand for what becomes the given output of the graph.

    Args:
        gradients: of this graph.
        graph: a traced backward pass.
    """
    leaving = _leaving(gradients, graph)
    apart: set[Region] = set()
    while True:
        regions = _divided(gradients, leaving, apart)
        tangled = _tangled(gradients, regions)
        if not tangled:
            return regions
        apart |= tangled


def is_sum(node: fx.Node, gradients: TracedGradients) -> bool:
    """Whether an addition is the engine's own, of what several nodes have sent to one."""
    adds = operator_name(node) == "add" and len(node.all_input_nodes) == 2
    both = adds and all(source in gradients.held for source in node.all_input_nodes)
    return both and bool(node.meta.get("is_gradient_acc")) and node not in gradients.nonlinear


def _leaving(gradients: TracedGradients, graph: fx.Graph) -> dict[fx.Node, list[int]]:
    """Where in the graph's output each gradient stands."""
    places: dict[fx.Node, list[int]] = {}
    for place, value in enumerate(outputs_of(graph)):
        if isinstance(value, fx.Node) and value in gradients.held:
            places.setdefault(value, []).append(place)
    return places


def outputs_of(graph: fx.Graph) -> tuple[object, ...]:
    """What a graph returns."""
    return tuple(next(node for node in reversed(graph.nodes) if node.op == "output").args[0])


def _divided(
    gradients: TracedGradients, leaving: dict[fx.Node, list[int]], apart: set[Region]
) -> dict[fx.Node, Region]:
    """Regions, with every operator of those in `apart` on its own."""
    regions: dict[fx.Node, Region] = {}
    members = dict.fromkeys(
        [*gradients.held, *(r for rs in gradients.readers.values() for r in rs)]
    )
    for node in members:
        regions[node] = _own_region(node, regions, gradients, apart)
    for node in reversed(members):
        if node.op == "placeholder" or is_sum(node, gradients):
            joined = _joined(node, regions, gradients, leaving)
            if joined is not None and joined not in apart:
                regions[node] = joined
    return regions


def _own_region(
    node: fx.Node, regions: dict[fx.Node, Region], gradients: TracedGradients, apart: set[Region]
) -> Region:
    if node.target is operator.getitem and node.args[0] in regions:
        return regions[node.args[0]]  # type: ignore[index]
    number = node.meta.get("seq_nr")
    if number is None or number in apart or is_cast(node) or is_sum(node, gradients):
        return node.name
    return node.name if node.op == "placeholder" else number


def _joined(
    node: fx.Node,
    regions: dict[fx.Node, Region],
    gradients: TracedGradients,
    leaving: dict[fx.Node, list[int]],
) -> Region | None:
    """The only region that a sum, or a gradient that enters, goes to; None if there are several."""
    found: set[Region] = {regions[reader] for reader in gradients.readers[node]}
    found |= {(LEAVES, place) for place in leaving.get(node, ())}
    if len(found) != 1:
        return None
    only = found.pop()
    # What enters and leaves untouched must meet a node on its way, or no edge would show it.
    passes = node.op == "placeholder" and isinstance(only, tuple)
    return None if passes else only


def _tangled(gradients: TracedGradients, regions: dict[fx.Node, Region]) -> set[Region]:
    """The regions of several operators that some gradient leaves and returns to."""
    edges = {
        (regions[node], regions[reader])
        for node, readers in gradients.readers.items()
        for reader in readers
        if regions[node] != regions[reader]
    }
    while edges:  # what nothing enters, or nothing leaves, is on no circle
        sources, targets = {a for a, _ in edges}, {b for _, b in edges}
        kept = {(a, b) for a, b in edges if a in targets and b in sources}
        if kept == edges:
            break
        edges = kept
    # An operator on its own, whose region is its name, cannot be divided; it is on no circle alone.
    return {region for edge in edges for region in edge if not isinstance(region, str)}
