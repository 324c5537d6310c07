"""What a user may give as a planner: one, or what stands for one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, cast

from gradscale.backward.graph import BackwardGraph
from gradscale.backward.measurements import Measurements
from gradscale.backward.plan import ScalePlan
from gradscale.plans.planner import Planner, UserGiven, UserPlan, fixed
from gradscale.plans.windows import Windows

UserPlanner: TypeAlias = Callable[[BackwardGraph, Measurements], UserPlan]
PlannerArgument: TypeAlias = bool | Planner | ScalePlan | UserPlanner


def planner_given(given: PlannerArgument, call: str) -> Planner:
    """True, a planner, a plan or a function, as a planner.

    Args:
        given: what the user has passed.
        call: how, with a pair of braces in its place.

    Raises:
        TypeError: if it is none of these.

    Example:
        >>> planner_given(lambda graph, measurements: {}, "Layerwise(planner={})").products
        False
    """
    if isinstance(given, type):
        raise TypeError(
            f"`{call.format(given.__name__)}` is a class. Pass an instance: `{given.__name__}()`."
        )
    if given is True:
        return Windows()
    if isinstance(given, ScalePlan):
        return fixed(given)
    if hasattr(given, "decide"):
        return cast(Planner, given)
    if callable(given):
        return UserGiven(given)
    raise TypeError(
        f"`{call.format(repr(given))}` must be True, a planner such as `Windows()`, a `ScalePlan` "
        "or a function of (graph, measurements)."
    )
