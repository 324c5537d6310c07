"""Leaves that no walk can see, because a node reaches them in a backward pass of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gradscale.backward.graph import Walk

# Hides nothing; and a parameter that only other ranks used has a gradient which no walk here meets.
DDP_SINK = "_DDPSinkBackward"


def custom_nodes(walk: Walk) -> frozenset[int]:
    """The nodes of custom autograd functions, which may run a backward pass inside."""
    kind = torch.autograd.function.BackwardCFunction
    return frozenset(
        i
        for i, node in enumerate(walk.nodes)
        if isinstance(node, kind) and walk.graph.names[i] != DDP_SINK
    )


def refusal(missed: Sequence[Tensor], names: Mapping[int, str]) -> RuntimeError:
    """What to say when a plan may have scaled gradients whose leaves it could not see."""
    named = ", ".join(
        names.get(id(p), f"a parameter of shape {tuple(p.shape)}") for p in missed[:3]
    )
    return RuntimeError(
        f"layer-wise scaling: {len(missed)} parameters ({named}) have gradients that did not come "
        "through `scaler.scale(loss).backward()`, so their scale is unknown. If a custom function "
        "runs a backward pass inside, or gradients are left from an earlier step, call "
        "`optimizer.zero_grad()` first or build the scaler with `layerwise=False`."
    )
