"""After an overflow that nobody measured: whoever may be to blame goes down at once."""

from __future__ import annotations

from collections.abc import Collection

import torch

from gradscale.backward.graph import BackwardGraph
from gradscale.gradients.unscale import gradient_values
from gradscale.layerwise.track import Track
from gradscale.plans.windows_overflow import lowered, suspects

OCTAVES = 4
"""Too low for a step, a group loses its smallest elements; too high, all do."""


def nonfinite_leaves(graph: BackwardGraph) -> list[int]:
    """The leaves whose gradient is infinite or NaN, while a skipped step has left it in place.

    Reads the host once for each parameter: after an overflow only, a good step pays nothing.
    """
    return [
        leaf
        for leaf, parameter in graph.parameters().items()
        if parameter is not None
        and (values := gradient_values(parameter)) is not None
        and not bool(torch.isfinite(values).all())
    ]


def lower_suspects(track: Track, nonfinite: Collection[int], log2_scale: int) -> int | None:
    """Lowers the groups that may have overflowed by `OCTAVES`; the others stay.

    The next step measures, and puts them where they belong.

    Args:
        track: its plan is changed, unless it is uniform (then the policy's backoff says it all).
        nonfinite: the leaves whose gradient was; what is infinite stays so on its way down.
        log2_scale: the exponent of the loss scale at which the step overflowed.

    Returns:
        The exponent of the loss scale for the next step; None to leave it to the policy.
    """
    if track.plan.is_uniform:
        return None
    nodes = suspects(track.graph, nonfinite)
    if not nodes:
        return None
    plan, log2_lowered = lowered(track.graph, track.plan, log2_scale, nodes, OCTAVES)
    track.plan, track.anchor = plan, log2_lowered
    return log2_lowered
