"""A planner's decision in words: how many loss scales the model needs, where and why."""

from __future__ import annotations

from gradscale.backward.graph import BackwardGraph
from gradscale.plans.decision import Decision, Group
from gradscale.plans.situation import Names


def decision_report(decision: Decision, graph: BackwardGraph, names: Names | None = None) -> str:
    """What was decided, in one line or a few.

    Args:
        decision: of any planner.
        graph: the graph that it was made for.
        names: for each node the module that it belongs to, as far as known.

    Example:
        >>> import torch
        >>> from gradscale.backward.plan import ScalePlan
        >>> graph = BackwardGraph.of((torch.ones(2, requires_grad=True) * 2).sum())
        >>> decision = Decision(ScalePlan.uniform(graph), 13, (Group(13, (0, 1)),))
        >>> print(decision_report(decision, graph))
        one loss scale is enough, 2^13
    """
    names = names or {}
    scales, hidden = decision.scales, _hidden_parameters(graph)
    if decision.plan.is_uniform and len(scales) <= 1:
        at = scales[0] if scales else decision.log2_scale
        enough = "one loss scale is enough, " if not hidden else "one loss scale, "
        lines = [f"{enough}2^{at}"]
    else:
        needed = len({*scales, decision.log2_scale})
        lines = [f"{needed} loss scales are needed, in {len(decision.groups)} groups:"]
        lines += [_line(group, graph, names) for group in decision.groups]
        if graph.freed:
            lines.append("parameters with float32 masters keep the scale of their group")
        if not graph.freed.issuperset(graph.leaves):
            others = "the other parameters" if graph.freed else "parameters"
            lines.append(f"{others} are at 2^{decision.log2_scale}")
    if hidden:
        lines.append(
            f"{hidden} parameters get their gradients inside compiled graphs that no plan looks "
            "into; what they need is not known"
        )
    for node in decision.overflowed:
        lines.append(f"an overflow began at {_name(node, graph, names)}; its group went down")
    for loss in decision.losses:
        guess = ", extrapolated" if loss.extrapolated else ""
        lines.append(
            f"no scale suits {_name(loss.node, graph, names)}: at 2^{loss.exponent}, the highest "
            f"without overflow, {loss.share:.1%} of its gradient is flushed{guess}"
        )
    return "\n".join([*lines, *decision.notes])


def _hidden_parameters(graph: BackwardGraph) -> int:
    """How many parameters compiled nodes hold that are not known inside; one alone is seen."""
    leaves = set(graph.leaves)
    held = [
        {graph.edges[number].target for number in graph.edges_from(node)} & leaves
        for node in graph.structure.closed
    ]
    return sum(len(own) for own in held if len(own) > 1)


def _line(group: Group, graph: BackwardGraph, names: Names) -> str:
    count = len(group.nodes)
    reasons: list[str] = []
    if group.needs is not None:
        reasons.append(f"{_name(group.needs[0], graph, names)} needs at least 2^{group.needs[1]}")
    if group.allows is not None:
        allowed = f"{_name(group.allows[0], graph, names)} allows at most 2^{group.allows[1]}"
        reasons.append(allowed)
    nodes = f"{count} node{'s' if count != 1 else ''} from {_name(group.nodes[0], graph, names)}"
    why = f": {', '.join(reasons)}" if reasons else ""
    return f"  2^{group.exponent} for {nodes}{why}"


def _name(node: int, graph: BackwardGraph, names: Names) -> str:
    kind = graph.names[node].removeprefix("torch::autograd::")
    return f"{names[node]} ({kind})" if node in names else f"node {node} ({kind})"
