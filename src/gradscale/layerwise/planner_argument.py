"""What `GradScaler(layerwise=…)` may be: a planner, what stands for one, or the part itself."""

from __future__ import annotations

from gradscale.layerwise.layerwise import Layerwise
from gradscale.plans.planner_given import PlannerArgument, planner_given
from gradscale.ranks import Ranks


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
        planner = planner_given(argument, "GradScaler(layerwise={})")
        return Layerwise(planner, process_group=process_group)
    if argument.taken:
        raise ValueError(
            "`GradScaler(layerwise=Layerwise(…))`: that one belongs to another scaler, and "
            "holds its plans. Make one for each."
        )
    argument.taken = True
    if argument.process_group is None:
        argument.process_group = process_group
    return argument
