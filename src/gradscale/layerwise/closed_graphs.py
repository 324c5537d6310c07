"""What no plan can look into, such as compiled graphs, and what to say of it."""

from __future__ import annotations

import sys

from gradscale.backward.graph import Walk
from gradscale.compiled.opened import part_of
from gradscale.compiled.part import Closed


def closed_graphs(walk: Walk) -> str | None:
    """A warning, if a pass goes through compiled graphs that cannot follow a plan; else None."""
    reasons = reasons_closed(walk, "this scaler", "the scaler")
    if not reasons:
        return None
    return (
        f"layer-wise scaling: a compiled graph stays at one loss scale inside, because {reasons}. "
        "`scaler.layerwise.report()` says nothing of what is inside it."
    )


def hidden_by_checkpoints(walk: Walk) -> str | None:
    """A warning, if a pass recomputes in a way that no walk sees through; else None."""
    if not walk.graph.structure.reentrant:
        return None
    return (
        "layer-wise scaling: reentrant checkpointing hides what it recomputes, which stays at the "
        "loss scale. Pass `use_reentrant=False` to `checkpoint` to have it scaled too."
    )


def reasons_closed(walk: Walk, this: str, the: str) -> str:
    """Why some compiled graphs of a pass cannot be looked into; empty if all can.

    Args:
        walk: of the pass.
        this: who looks, such as "this scaler".
        the: the same, such as "the scaler".
    """
    closed = walk.graph.structure.closed
    parts = (part_of(walk.nodes[node]) for node in closed)
    reasons = {part.why for part in parts if isinstance(part, Closed)}
    return "; another, because ".join(sorted(reasons)).format(this=this, the=the)


def compiled_autograd() -> str | None:
    """A warning, if compiled autograd is on, which traces a whole backward pass; else None."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:
        return None
    autograd = sys.modules.get("torch._dynamo.compiled_autograd")
    enabled = getattr(autograd, "compiled_autograd_enabled", False)
    if not (enabled or getattr(dynamo.config, "compiled_autograd", False)):
        return None
    return (
        "layer-wise scaling: compiled autograd traces the whole backward pass, where no plan can "
        "be attached; training goes on at one loss scale. Leave "
        "`torch._dynamo.config.compiled_autograd` off to have the plan: `torch.compile` alone "
        "keeps it."
    )
