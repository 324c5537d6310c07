"""Planning for the format that products really read, where emulation makes it another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch.autograd.graph import Node

from gradscale.emulation import emulating
from gradscale.plans.excluding import Excluding
from gradscale.plans.planner import Planner
from gradscale.plans.windows import Windows


def fitted(planner: Planner, nodes: Sequence[Node] | None = None) -> Planner:
    """The planner, told of the formats to which products round their gradient here and now.

    Under `gradscale.emulation` a gradient is carried by a float16 or float32 tensor, but every
    product rounds it to the emulated format first, and then what it makes of it to another; those
    are the ranges that count.

    Args:
        planner: any.
        nodes: of the pass that is planned for, which may run after the `emulate` that built them.

    Example:
        >>> from gradscale.emulation import emulate
        >>> with emulate(backward="e5m2"):
        ...     fitted(Windows()).product_format.name
        'e5m2'
    """
    precision = emulating(nodes)
    if precision is None:
        return planner
    if isinstance(planner, Excluding):
        return replace(planner, planner=fitted(planner.planner, nodes))
    if isinstance(planner, Windows) and planner.product_format is None:
        return replace(
            planner,
            product_format=precision.backward,
            result_format=planner.result_format or precision.backward_result,
        )
    return planner
