"""Where an overflow began, what it spoilt, and the plan without it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from gradscale.backward.graph import BackwardGraph
from gradscale.backward.measurements import Measurements
from gradscale.backward.plan import ScalePlan
from gradscale.plans.groups import bounded, connected
from gradscale.plans.window import Window


class Overflow(NamedTuple):
    """What became of a backward pass that overflowed.

    Attributes:
        origins: the nodes at which it began, ascending.
        behind: the nodes not held at the loss scale that received something infinite or NaN of
            them, ascending: how large their own gradients were nobody knows.
    """

    origins: tuple[int, ...]
    behind: tuple[int, ...]


def overflow_in(graph: BackwardGraph, measurements: Measurements) -> Overflow:
    """Where a measured backward pass first became infinite or NaN, and what that spoilt.

    An origin received nothing bad and produced it, or received it though whatever it came from was
    finite (a sum or a multiplication on the way overflowed). Nodes without a measurement pass on
    what they receive.
    """
    arrived: set[int] = set()
    finite: set[int] = set()
    produced: dict[tuple[int, int], bool] = {}
    for record in measurements.records:
        bad = record.counts.nonfinite > 0
        if record.kind == "produced":
            produced[record.node, record.target] = bad
        elif record.kind == "arrived":
            (arrived if bad else finite).add(record.node)
    finite -= arrived
    origins: list[int] = []
    dirty: set[int] = set()
    for node in range(len(graph)):
        edges = [graph.edges[number] for number in graph.edges_from(node)]
        makes = [edge for edge in edges if produced.get((node, edge.target), False)]
        if node not in dirty and (node in arrived or makes):
            origins.append(node)
        passes_on = node in dirty or node in arrived
        for edge in edges:
            if produced.get((node, edge.target), passes_on) and edge.target not in finite:
                dirty.add(edge.target)
    return Overflow(
        tuple(origins), tuple(sorted(dirty.difference(origins, graph.leaves, graph.fixed)))
    )


def suspects(graph: BackwardGraph, nonfinite: Collection[int]) -> tuple[int, ...]:
    """The nodes at which an overflow may have begun, given only which leaves became non-finite.

    What is infinite stays so on its way down, so what leads to a finite leaf received nothing that
    was. A node may make it, though, for one of those that it leads to: the gradient of a product's
    weight overflows where that of its input does not. So the suspects are the nodes that lead to
    non-finite leaves alone, and whatever hands these or such a leaf something.

    Args:
        graph: the graph.
        nonfinite: the leaf nodes whose gradient is infinite or NaN.

    Returns:
        Ascending; empty if no leaf is non-finite. A leaf, or another node held at the loss scale,
        is among them if no suspect leads to it: then the multiplication on the edge to it may have
        been too much.

    Example:
        >>> import torch
        >>> a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
        >>> graph = BackwardGraph.of((a.exp() + b.sin()).sum())
        >>> first, second = graph.leaves
        >>> [graph.names[node] for node in suspects(graph, [first])]
        ['AddBackward0', 'ExpBackward0']
    """
    bad = set(nonfinite)
    reaches_finite = [False] * len(graph)
    reaches_bad = [False] * len(graph)
    for leaf in graph.leaves:
        reaches_bad[leaf] = leaf in bad
        reaches_finite[leaf] = leaf not in bad
    for edge in reversed(graph.edges):
        reaches_finite[edge.source] |= reaches_finite[edge.target]
        reaches_bad[edge.source] |= reaches_bad[edge.target]
    nodes = range(len(graph))
    spoilt = {node for node in nodes if reaches_bad[node] and not reaches_finite[node]}
    givers = {edge.source for edge in graph.edges if edge.target in spoilt}
    led_to = {edge.target for edge in graph.edges if edge.source in spoilt}
    held = graph.fixed.union(graph.leaves)
    return tuple(sorted((spoilt | givers) - (led_to & held)))


def lowered(
    graph: BackwardGraph,
    plan: ScalePlan,
    log2_scale: int,
    nodes: Collection[int],
    octaves: int,
    windows: Sequence[Window] = (),
) -> tuple[ScalePlan, int]:
    """The plan and loss scale after the groups of `nodes` went down; all others stay.

    A leaf or a pinned node is at the loss scale, so if one of them overflowed, that goes down and
    the exponents relative to it go up.

    Args:
        graph: the graph.
        plan: under which `nodes` overflowed.
        log2_scale: under which they did.
        nodes: where an overflow began, and what it spoilt.
        octaves: how far they go down at least.
        windows: of each node, as they were before, if that is known: a group that was put far above
            them goes into them at once. So it is for a node that somebody begins to watch, and that
            comes from its own exponent to the loss scale.
    """
    components = connected(graph, plan)
    falls = {components[node]: octaves for node in nodes}
    for node, window in enumerate(windows):
        exponent = log2_scale + (plan.exponents[node] if components[node] >= 0 else 0)
        if components[node] in falls and exponent > window.limit:
            falls[components[node]] = max(falls[components[node]], exponent - window.hi)
    exponents = list(plan.exponents)
    lower_scale = falls.get(-1, 0)
    for node, component in enumerate(components):
        if component >= 0:
            exponents[node] += lower_scale - falls.get(component, 0)
    lower = tuple(bounded(exponent) for exponent in exponents)
    return ScalePlan(lower, plan.signature), log2_scale - lower_scale
