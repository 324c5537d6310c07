"""What `GradScaler(layerwise=…)` may be, as a planner."""

from __future__ import annotations

from typing import Any, cast

from gradscale.backward.plan import ScalePlan
from gradscale.plans.planner import Planner, UserGiven, fixed
from gradscale.plans.windows import Windows


def planner_given(layerwise: Any) -> Planner:
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
        return layerwise
    if callable(layerwise):
        return UserGiven(cast(Any, layerwise))
    raise TypeError(
        f"`GradScaler(layerwise={layerwise!r})` must be True, a planner such as `Windows()`, a "
        "`ScalePlan`, a function of (graph, measurements), or a `Layerwise(…)`."
    )
