"""From a planner's decision, which is of nodes, to a report, which is of modules."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from gradscale.backward.graph import BackwardGraph
from gradscale.plans.decision import Decision, Group
from gradscale.plans.situation import Names
from gradscale.plans.structure_report import Bound, GroupReport, LossReport, StructureReport


def structure_report(
    decision: Decision, graph: BackwardGraph, names: Names | None = None
) -> StructureReport:
    """What was decided, as values that `print` makes sentences of.

    Args:
        decision: of any planner.
        graph: the graph that it was made for.
        names: for each node the module that it belongs to, as far as known.

    Example:
        >>> import torch
        >>> from gradscale.backward.plan import ScalePlan
        >>> graph = BackwardGraph.of((torch.ones(2, requires_grad=True) * 2).sum())
        >>> decision = Decision(ScalePlan.uniform(graph), 13, (Group(13, (0, 1)),))
        >>> print(structure_report(decision, graph))
        one loss scale is enough, 2^13
    """
    names = names or {}

    def at(node: int) -> str:
        return node_label(graph, names, node)

    uniform = decision.plan.is_uniform and len(decision.scales) <= 1
    one = decision.scales or (decision.log2_scale,)
    scales = one if uniform else tuple(sorted({*decision.scales, decision.log2_scale}))
    return StructureReport(
        scales=scales,
        log2_scale=decision.log2_scale,
        groups=tuple(_group(group, graph, names) for group in decision.groups),
        parameters=() if uniform else tuple(_parameters(decision, graph)),
        hidden=_hidden_parameters(graph),
        overflowed=tuple(map(at, decision.overflowed)),
        losses=tuple(
            LossReport(at(it.node), it.exponent, it.share, it.extrapolated)
            for it in decision.losses
        ),
        notes=decision.notes,
    )


def node_label(graph: BackwardGraph, names: Names, node: int) -> str:
    """A node for people: its module, and in brackets the operation.

    Where the module is not known, the parameter that it leads to is told by its shape.

    Example:
        >>> import torch
        >>> w = torch.ones(2, requires_grad=True)
        >>> graph = BackwardGraph.of((w * 2).sum())
        >>> node_label(graph, {1: "after encoder.0"}, 1)
        'after encoder.0 (MulBackward0)'
        >>> node_label(graph, {}, 1)
        'node 1 (MulBackward0, on the way to a parameter of shape (2,))'
    """
    kind = graph.names[node].removeprefix("torch::autograd::")
    if node in names:
        return f"{names[node]} ({kind})"
    leaf = _leaf_below(graph, node)
    parameter = None if leaf is None else graph.parameters().get(leaf)
    shape = "" if parameter is None else f"a parameter of shape {tuple(parameter.shape)}"
    way = f", {'' if leaf == node else 'on the way to '}{shape}" if shape else ""
    return f"node {node} ({kind}{way})"


def _leaf_below(graph: BackwardGraph, node: int) -> int | None:
    """The nearest leaf that a backward pass comes to from a node."""
    leaves, ready, seen = set(graph.leaves), deque([node]), {node}
    while ready:
        here = ready.popleft()
        if here in leaves:
            return here
        below = {graph.edges[number].target for number in graph.edges_from(here)} - seen
        seen |= below
        ready.extend(sorted(below))
    return None


def _group(group: Group, graph: BackwardGraph, names: Names) -> GroupReport:
    def bound(asked: tuple[int, int] | None) -> Bound | None:
        return None if asked is None else Bound(node_label(graph, names, asked[0]), asked[1])

    modules = (names[node].removeprefix("after ") for node in group.nodes if node in names)
    return GroupReport(
        exponent=group.exponent,
        modules=tuple(dict.fromkeys(modules)),
        nodes=len(group.nodes),
        first=node_label(graph, names, group.nodes[0]),
        needs=bound(group.needs),
        allows=bound(group.allows),
    )


def _parameters(decision: Decision, graph: BackwardGraph) -> Iterable[str]:
    if graph.freed:
        yield "parameters with float32 masters keep the scale of their group"
    if not graph.freed.issuperset(graph.leaves):
        others = "the other parameters" if graph.freed else "parameters"
        yield f"{others} are at 2^{decision.log2_scale}"


def _hidden_parameters(graph: BackwardGraph) -> int:
    """How many parameters compiled nodes hold that are not known inside; one alone is seen."""
    leaves = set(graph.leaves)
    held = [
        {graph.edges[number].target for number in graph.edges_from(node)} & leaves
        for node in graph.structure.closed
    ]
    return sum(len(own) for own in held if len(own) > 1)
