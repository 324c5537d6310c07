"""What `GradScaler(layerwise=…)` may be, as a planner."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from gradscale.backward.graph import BackwardGraph
from gradscale.backward.measurements import Measurements
from gradscale.backward.plan import ScalePlan
from gradscale.plans.planner import Planner, UserGiven, UserPlan, fixed
from gradscale.plans.windows import Windows

UserPlanner = Callable[[BackwardGraph, Measurements], UserPlan]
PlannerArgument = bool | Planner | ScalePlan | UserPlanner


def planner_given(layerwise: PlannerArgument) -> Planner:
    """True, a planner, a plan or a function, as a planner.

    Raises:
        TypeError: if it is none of these.
    """
    if isinstance(layerwise, type):
        raise TypeError(
            f"`GradScaler(layerwise={layerwise.__name__})` is a class. Pass an instance: "
            f"`layerwise={layerwise.__name__}()`."
        )
    if layerwise is True:
        return Windows()
    if isinstance(layerwise, ScalePlan):
        return fixed(layerwise)
    if hasattr(layerwise, "decide"):
        return cast(Planner, layerwise)
    if callable(layerwise):
        return UserGiven(layerwise)
    raise TypeError(
        f"`GradScaler(layerwise={layerwise!r})` must be True, a planner such as `Windows()`, a "
        "`ScalePlan`, a function of (graph, measurements), or a `Layerwise(…)`."
    )
