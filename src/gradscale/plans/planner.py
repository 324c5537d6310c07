"""The contract of a planner: a pure function from a graph and its measurements to a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from gradscale.backward.graph import BackwardGraph
from gradscale.backward.measurements import Measurements
from gradscale.backward.plan import ScalePlan
from gradscale.plans.decision import Decision
from gradscale.plans.groups import connected_groups
from gradscale.plans.situation import Situation

UserPlan = ScalePlan | Mapping[int, int] | Sequence[int]


class Planner(Protocol):
    """Decides one exponent for every node. Implementations are frozen dataclasses.

    One that reads nothing finer off counts than shares may also have a property `sampled`, True:
    then a part stands for the whole of a large tensor, as for `Windows`.
    """

    @property
    def moments(self) -> bool:
        """Whether `decide` needs measurements with moments and weights."""
        ...

    @property
    def products(self) -> bool:
        """Whether `decide` needs every matrix product counted, whatever dtype carries it."""
        ...

    def decide(self, situation: Situation) -> Decision:
        """The plan for the next steps; changes nothing of the situation."""
        ...


@dataclass(frozen=True)
class UserGiven:
    """A planner made of any function from (graph, measurements) to a plan.

    Args:
        function: returns a `ScalePlan`, or relative exponents by node or for all nodes. Leaves and
            pinned nodes are put at the loss scale.

    Raises:
        TypeError: if it cannot be called.
        ValueError: from `decide`, if the plan does not fit the graph.
    """

    function: Callable[[BackwardGraph, Measurements], UserPlan]

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(
                f"`UserGiven(function={self.function!r})` must be a function of (graph, "
                "measurements). For a plan that stays, use `fixed(plan)`."
            )

    def __repr__(self) -> str:
        name = getattr(self.function, "__qualname__", None) or repr(self.function)
        return f"UserGiven({name})"

    @property
    def moments(self) -> bool:
        """A function of the user's may look at anything, but moments are for `Adaptive`."""
        return False

    @property
    def products(self) -> bool:
        """Tensors of reduced precision are counted, and no others."""
        return False

    def decide(self, situation: Situation) -> Decision:
        """The function's plan, at the loss scale as it is; after an overflow an octave lower.

        The plan is what was asked for, so the scale alone can give way.
        """
        graph = situation.graph
        log2_scale = situation.log2_scale - situation.measurements.overflowed
        given = self.function(graph, situation.measurements)
        plan = given if isinstance(given, ScalePlan) else _plan_from(graph, given)
        if plan.signature == graph.signature:
            plan = plan.pinning(graph)
        plan.check(graph)
        return situation.decision(plan, log2_scale, connected_groups(graph, plan, log2_scale))


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

    Raises:
        TypeError: if that is no `ScalePlan`.

    Example:
        >>> import torch
        >>> graph = BackwardGraph.of((torch.ones(2, requires_grad=True) * 2).sum())
        >>> plan = ScalePlan.of(graph, {1: 5})
        >>> situation = Situation(graph, Measurements(graph.signature), plan, 16)
        >>> fixed(plan).decide(situation).plan == plan
        True
    """
    if not isinstance(plan, ScalePlan):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"`fixed(plan={plan!r})` must be a `ScalePlan`. Make one with `ScalePlan.of(graph, …)`."
        )
    return UserGiven(_Always(plan))


@dataclass(frozen=True)
class _Always:
    plan: ScalePlan

    def __call__(self, graph: BackwardGraph, measurements: Measurements) -> ScalePlan:
        return self.plan

    def __repr__(self) -> str:
        return f"always {self.plan}"
