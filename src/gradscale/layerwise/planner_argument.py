"""What `GradScaler(layerwise=…)` may be: a planner, what stands for one, or the part itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from gradscale.backward.graph import BackwardGraph
from gradscale.backward.measurements import Measurements
from gradscale.backward.plan import ScalePlan
from gradscale.layerwise.layerwise import Layerwise
from gradscale.plans.planner import Planner, UserGiven, UserPlan, fixed
from gradscale.plans.windows import Windows
from gradscale.ranks import Ranks

UserPlanner = Callable[[BackwardGraph, Measurements], UserPlan]
PlannerArgument = bool | Planner | ScalePlan | UserPlanner


def layerwise_of(
    argument: Layerwise | PlannerArgument | None, process_group: Ranks | None
) -> Layerwise | None:
    """The layer-wise part of a scaler; None for False and None.

    Args:
        argument: True, a planner, a plan, a function, or the part itself.
        process_group: the ranks that must decide alike, where that part does not say.

    Raises:
        TypeError: if it is nothing that decides plans.
        ValueError: if it belongs to another scaler.
    """
    if argument is False or argument is None:
        return None
    if not isinstance(argument, Layerwise):
        return Layerwise(planner_given(argument), process_group=process_group)
    if argument.taken:
        raise ValueError(
            "`GradScaler(layerwise=Layerwise(…))`: that one belongs to another scaler, and "
            "holds its plans. Make one for each."
        )
    argument.taken = True
    if argument.process_group is None:
        argument.process_group = process_group
    return argument


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
