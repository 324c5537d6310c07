"""Leaves that no walk can see, because a node reaches them in a backward pass of its own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gradscale.backward.graph import Walk
from gradscale.layerwise.naming import Naming

# Hides nothing; and a parameter that only other ranks used has a gradient which no walk here meets.
DDP_SINK = "_DDPSinkBackward"


def custom_nodes(walk: Walk) -> frozenset[int]:
    """The nodes of custom autograd functions, which may run a backward pass inside."""
    custom = walk.graph.structure.custom
    return frozenset(i for i in custom if walk.graph.names[i] != DDP_SINK)


def refusal(missed: Sequence[Tensor], naming: Naming) -> RuntimeError:
    """What to say when a plan may have scaled gradients whose leaves it could not see."""
    named = ", ".join(map(naming.parameter, missed[:3]))
    return RuntimeError(
        f"layer-wise scaling: {len(missed)} parameters ({named}) have gradients that did not come "
        "through `scaler.scale(loss).backward()`, so their scale is unknown. If a custom function "
        "runs a backward pass inside, or gradients are left from an earlier step, call "
        "`optimizer.zero_grad()` first or build the scaler with `layerwise=False`."
    )
