"""The contract of a planner: a pure function from a graph and its measurements to a plan."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from gradscale.backward.graph import BackwardGraph
from gradscale.backward.measurements import Measurements
from gradscale.backward.plan import ScalePlan

Names = Mapping[int, str]
UserPlan = ScalePlan | Mapping[int, int] | Sequence[int]


@dataclass(frozen=True)
class Group:
    """Neighbouring nodes with one exponent.

    Attributes:
        exponent: absolute: gradients are stored as ``2**exponent`` times the true ones.
        nodes: ascending.
        needs: the node that needs the largest exponent, and how large; None if none needs any.
        allows: the node that allows the smallest exponent, and how small; None if all allow any.
    """

    exponent: int
    nodes: tuple[int, ...]
    needs: tuple[int, int] | None = None
    allows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Loss:
    """A node whose window is empty: what it flushes where it just does not overflow.

    Attributes:
        node: the node.
        exponent: at which it is stored.
        share: of its non-zero elements, flushed there.
        extrapolated: whether the share rests on gradients that were flushed when measured.
    """

    node: int
    exponent: int
    share: float
    extrapolated: bool


@dataclass(frozen=True)
class Decision:
    """What a planner decided.

    Attributes:
        plan: exponents relative to the loss scale.
        log2_scale: the exponent of the loss scale that the plan was made for.
        groups: connected groups of nodes, the largest first. Leaves and pinned nodes, which are
            at the loss scale, belong to none.
        losses: nodes that lose more than the target whatever the exponent.
        overflowed: the nodes at which an overflow began, if one made this decision.
        changed: whether plan or loss scale differ from those before.
        notes: what else the reader should know, one sentence each.
    """

    plan: ScalePlan
    log2_scale: int
    groups: tuple[Group, ...] = ()
    losses: tuple[Loss, ...] = ()
    overflowed: tuple[int, ...] = ()
    changed: bool = True
    notes: tuple[str, ...] = field(default=())

    @property
    def scales(self) -> tuple[int, ...]:
        """The exponents in use, each once, ascending: how many loss scales the model needs."""
        return tuple(sorted({group.exponent for group in self.groups}))


class Planner(Protocol):
    """Decides one exponent for every node. Implementations are frozen dataclasses."""

    @property
    def moments(self) -> bool:
        """Whether `decide` needs measurements with moments and weights."""
        ...

    @property
    def products(self) -> bool:
        """Whether `decide` needs every matrix product counted, whatever dtype carries it."""
        ...

    def decide(
        self,
        graph: BackwardGraph,
        measurements: Measurements,
        current: ScalePlan,
        log2_scale: int,
        names: Names | None = None,
    ) -> Decision:
        """The plan for the next steps; changes none of its arguments.

        Args:
            graph: the graph.
            measurements: of this graph.
            current: the plan under which it was measured.
            log2_scale: the exponent of the loss scale under which it was measured.
            names: for each node the module that it belongs to, as far as known.
        """
        ...


@dataclass(frozen=True)
class UserGiven:
    """A planner made of any function from (graph, measurements) to a plan.

    Args:
        function: returns a `ScalePlan`, or relative exponents by node or for all nodes. Leaves and
            pinned nodes are put at the loss scale.

    Raises:
        ValueError: from `decide`, if the plan does not fit the graph.
    """

    function: Callable[[BackwardGraph, Measurements], UserPlan]

    @property
    def moments(self) -> bool:
        """A function of the user's may look at anything, but moments are for `Adaptive`."""
        return False

    @property
    def products(self) -> bool:
        """Tensors of reduced precision are counted, and no others."""
        return False

    def decide(
        self,
        graph: BackwardGraph,
        measurements: Measurements,
        current: ScalePlan,
        log2_scale: int,
        names: Names | None = None,
    ) -> Decision:
        """The function's plan, at the loss scale as it is."""
        del names
        given = self.function(graph, measurements)
        plan = given if isinstance(given, ScalePlan) else _plan_from(graph, given)
        if plan.signature == graph.signature:
            plan = plan.pinning(graph)
        plan.check(graph)
        groups = groups_of(graph, plan, log2_scale)
        return Decision(plan, log2_scale, groups, changed=plan != current)


def _plan_from(graph: BackwardGraph, given: Mapping[int, int] | Sequence[int]) -> ScalePlan:
    if not isinstance(given, Mapping | Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"the function given as a planner returned {given!r}; it must return a `ScalePlan`, a "
            "mapping from nodes to exponents, or a sequence of one exponent a node."
        )
    fixed = graph.fixed
    if isinstance(given, Mapping):
        return ScalePlan.of(graph, {node: k for node, k in given.items() if node not in fixed})
    return ScalePlan.of(graph, [0 if n in fixed else k for n, k in enumerate(given)])


def fixed(plan: ScalePlan) -> UserGiven:
    """A planner that always decides for `plan`.

    Example:
        >>> import torch
        >>> graph = BackwardGraph.of((torch.ones(2, requires_grad=True) * 2).sum())
        >>> plan = ScalePlan.of(graph, {1: 5})
        >>> fixed(plan).decide(graph, Measurements(graph.signature), plan, 16).plan == plan
        True
    """
    return UserGiven(lambda graph, measurements: plan)


@dataclass(frozen=True)
class Excluding:
    """Another planner, except that the nodes of some modules stay at the loss scale.

    Args:
        planner: decides for the other nodes.
        modules: names as in `model.named_modules()`; a name includes everything below it.
    """

    planner: Planner
    modules: Collection[str]

    @property
    def moments(self) -> bool:
        """Whether the other planner needs moments."""
        return self.planner.moments

    @property
    def products(self) -> bool:
        """Whether the other planner needs every product counted."""
        return self.planner.products

    def decide(
        self,
        graph: BackwardGraph,
        measurements: Measurements,
        current: ScalePlan,
        log2_scale: int,
        names: Names | None = None,
    ) -> Decision:
        """The other planner's decision with the nodes of the modules pinned.

        Raises:
            ValueError: if a module has no node in the graph.
        """
        names = names or {}
        pinned: set[int] = set()
        for module in self.modules:
            nodes = [node for node, name in names.items() if _within(name, module)]
            if not nodes:
                known = ", ".join(sorted({name.split(".")[0] for name in names.values()}))
                raise ValueError(
                    f"`Excluding(modules={list(self.modules)})`: no node of this graph belongs to "
                    f"{module!r}. The modules with nodes are below: {known or 'none'}."
                )
            pinned.update(nodes)
        return self.planner.decide(
            graph.pinning(pinned), measurements, current.pinning(graph.pinning(pinned)),
            log2_scale, names,
        )  # fmt: skip


def _within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def groups_of(graph: BackwardGraph, plan: ScalePlan, log2_scale: int) -> tuple[Group, ...]:
    """The connected groups of equal exponents, without leaves and pinned nodes, largest first."""
    components = connected(graph, plan)
    members: dict[int, list[int]] = {}
    for node, component in enumerate(components):
        if component >= 0:
            members.setdefault(component, []).append(node)
    groups = (
        Group(plan.exponents[nodes[0]] + log2_scale, tuple(nodes)) for nodes in members.values()
    )
    return tuple(sorted(groups, key=lambda group: (-len(group.nodes), group.nodes)))


def connected(graph: BackwardGraph, plan: ScalePlan) -> list[int]:
    """For each node the smallest node that it reaches at its exponent; -1 for fixed nodes."""
    fixed_nodes = graph.fixed
    exponents = plan.exponents
    parent = [-1 if node in fixed_nodes else node for node in range(len(graph))]

    def find(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for edge in graph.edges:
        free = parent[edge.source] >= 0 and parent[edge.target] >= 0
        if free and exponents[edge.source] == exponents[edge.target]:
            one, other = find(edge.source), find(edge.target)
            parent[max(one, other)] = min(one, other)
    return [find(node) if parent[node] >= 0 else -1 for node in range(len(graph))]


def moved(plan: ScalePlan, nodes: Collection[int], octaves: int) -> ScalePlan:
    """The plan with these nodes moved, as far as its limits allow."""
    exponents = list(plan.exponents)
    for node in nodes:
        exponents[node] = max(-63, min(63, exponents[node] + octaves))
    return replace(plan, exponents=tuple(exponents))
