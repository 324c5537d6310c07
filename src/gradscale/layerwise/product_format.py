"""Planning for the format that products really read, where emulation makes it another one."""

from __future__ import annotations

from dataclasses import replace

from gradscale.emulation import emulating
from gradscale.plans.planner import Excluding, Planner
from gradscale.plans.windows import Windows


def fitted(planner: Planner) -> Planner:
    """The planner, told of the formats to which products round their gradient here and now.

    Under `gradscale.emulation` a gradient is carried by a float16 or float32 tensor, but every
    product rounds it to the emulated format first, and then what it makes of it to another; those
    are the ranges that count.

    Example:
        >>> from gradscale.emulation import emulate
        >>> with emulate(backward="e5m2"):
        ...     fitted(Windows()).product_format.name
        'e5m2'
    """
    precision = emulating()
    if precision is None:
        return planner
    if isinstance(planner, Excluding):
        return replace(planner, planner=fitted(planner.planner))
    if isinstance(planner, Windows) and planner.product_format is None:
        return replace(
            planner,
            product_format=precision.backward,
            result_format=planner.result_format or precision.backward_result,
        )
    return planner
