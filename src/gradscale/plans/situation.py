"""What a planner is asked about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from gradscale.backward.graph import BackwardGraph
from gradscale.backward.measurements import Measurements
from gradscale.backward.plan import ScalePlan
from gradscale.plans.decision import Decision, Group
from gradscale.plans.groups import bounded
from gradscale.plans.tail import NO_TAIL, LostStep, Tail

Names = Mapping[int, str]


@dataclass(frozen=True, eq=False)
class Situation:
    """A graph, what was measured on it, and the plan under which it was.

    Attributes:
        graph: the graph.
        measurements: of this graph.
        current: the plan under which it was measured.
        log2_scale: the exponent of the loss scale under which it was measured.
        names: for each node the module that it belongs to, as far as known.
        known: the latest measurements of this graph in which nothing overflowed, if there are any.
        overflows: how many measurements in a row before this one overflowed.
        tail: what overflows of this graph have taught since it was first measured whole.
        lost: a step that overflowed since the last measurement in which nothing did.

    Example:
        >>> import torch
        >>> from gradscale.plans import Windows
        >>> graph = BackwardGraph.of((torch.ones(2, requires_grad=True) * 2).sum())
        >>> nothing = Measurements(graph.signature)
        >>> Windows().decide(Situation(graph, nothing, ScalePlan.uniform(graph), 16)).changed
        False
    """

    graph: BackwardGraph
    measurements: Measurements
    current: ScalePlan
    log2_scale: int
    names: Names = field(default_factory=dict[int, str])
    known: Measurements | None = None
    overflows: int = 0
    tail: Tail = NO_TAIL
    lost: LostStep | None = None

    def pinning(self, nodes: Iterable[int]) -> Situation:
        """The same with more nodes pinned to the loss scale."""
        graph = self.graph.pinning(nodes)
        return replace(self, graph=graph, current=self.current.pinning(graph))

    def plan_of(self, exponents: Mapping[int, int], log2_scale: int) -> ScalePlan:
        """The plan with these absolute exponents; other nodes are at the loss scale."""
        relative = [
            bounded(exponents.get(node, log2_scale) - log2_scale) for node in range(len(self.graph))
        ]
        return ScalePlan(tuple(relative), self.graph.signature)

    def decision(
        self,
        plan: ScalePlan,
        log2_scale: int,
        groups: tuple[Group, ...],
        overflowed: Iterable[int] = (),
    ) -> Decision:
        """The decision for a plan and a loss scale, changed if either differs from those before."""
        changed = (plan, log2_scale) != (self.current, self.log2_scale)
        return Decision(plan, log2_scale, groups, overflowed=tuple(overflowed), changed=changed)
