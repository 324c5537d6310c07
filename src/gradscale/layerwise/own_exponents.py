"""Leaves in half precision: each keeps its own exponent until it is divided into its master.

At the loss scale a leaf holds what float16 holds there, and flushes the rest when the gradient is
stored, however well the plan kept it until then. A leaf with a float32 master need not come down to
the loss scale: the pass that divides it divides by its own power of two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gradscale.backward.graph import BackwardGraph, Walk
from gradscale.backward.multipliers import Multipliers
from gradscale.backward.plan import ScalePlan
from gradscale.half.link import LINKS, Link, link_of
from gradscale.half.rounding import HALVES
from gradscale.half.shared_gradient import Held


def freed(walk: Walk) -> tuple[Walk, dict[int, Link]]:
    """The walk with the leaves that may take an exponent of their own, and their links.

    Not those that hold a float32 gradient already, to which more is added at the loss scale, and
    none where a reentrant checkpoint may bring a part of the gradient at the loss scale.
    """
    graph = walk.graph
    own: dict[int, Link] = {}
    if LINKS and not graph.structure.reentrant:
        for leaf, parameter in graph.parameters().items():
            link = link_of(parameter)
            if link is not None and _divided_later(link):
                own[leaf] = link
    return (Walk(graph.freeing(own), walk.nodes) if own else walk), own


def with_held_exponents(
    graph: BackwardGraph, own: Mapping[int, Link], plan: ScalePlan, factors: Multipliers
) -> tuple[ScalePlan, Multipliers]:
    """The plan in which leaves stay at the exponent of what they hold; tells each its exponent."""
    exponents = list(plan.exponents)
    for leaf, link in own.items():
        if link.held in (Held.ARRIVED, Held.MODIFIED):
            exponents[leaf] = link.exponent
    if tuple(exponents) != plan.exponents:
        plan = replace(plan, exponents=tuple(exponents))
        factors = Multipliers(graph, plan)
    for leaf, link in own.items():
        link.expect(plan.exponents[leaf])
    return plan, factors


def _divided_later(link: Link) -> bool:
    grad = link.parameter.grad
    if link.parameter.dtype not in HALVES or link.accumulates not in HALVES:
        return False
    return grad is None or grad.dtype in HALVES
