"""Leaves that no walk can see, because a node reaches them in a backward pass of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradscale.backward.graph import BackwardGraph, Walk
from gradscale.gradients.master_weights import trained_by

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


class Leaves:
    """The parameters that the backward passes of one step reach through graphs that were walked."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self.signatures: set[str] = set()
        self.walked = False
        self.scaled = False

    def see(self, graph: BackwardGraph, scaled: bool) -> None:
        """A pass that runs through `graph`, with a plan that is not uniform or with one that is."""
        self.walked = True
        self.scaled |= scaled
        self.signatures.add(graph.signature)
        self._seen.update(id(parameter) for parameter in graph.parameters().values())

    def missed(self, parameters: Iterable[Tensor]) -> list[Tensor]:
        """Those with a gradient that no walked graph leads to."""
        return [p for p in parameters if p.grad is not None and id(p) not in self._seen]


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


def owned(optimizer: Any) -> Iterable[Tensor]:
    """The parameters that an optimizer trains."""
    return trained_by(optimizer)
