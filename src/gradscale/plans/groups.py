"""Neighbouring nodes that share an exponent, and plans in which they move together."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from gradscale.backward.graph import BackwardGraph
from gradscale.backward.plan import LARGEST_EXPONENT, ScalePlan
from gradscale.plans.decision import Group
from gradscale.plans.disjoint_sets import DisjointSets


def connected_groups(graph: BackwardGraph, plan: ScalePlan, log2_scale: int) -> tuple[Group, ...]:
    """The connected groups of equal exponents, without leaves and pinned nodes, largest first."""
    groups = (
        Group(plan.exponents[nodes[0]] + log2_scale, tuple(nodes))
        for nodes in members(graph, plan).values()
    )
    return tuple(sorted(groups, key=lambda group: (-len(group.nodes), group.nodes)))


def members(graph: BackwardGraph, plan: ScalePlan) -> dict[int, list[int]]:
    """By its smallest node, the nodes of each connected group, ascending; no fixed nodes."""
    found: dict[int, list[int]] = {}
    for node, group in enumerate(connected(graph, plan)):
        if group >= 0:
            found.setdefault(group, []).append(node)
    return found


def connected(graph: BackwardGraph, plan: ScalePlan) -> list[int]:
    """For each node the smallest node that it reaches at its exponent; -1 for fixed nodes."""
    fixed_nodes, exponents = graph.fixed, plan.exponents
    sets = DisjointSets(len(graph))
    for edge in graph.edges:
        free = edge.source not in fixed_nodes and edge.target not in fixed_nodes
        if free and exponents[edge.source] == exponents[edge.target]:
            sets.unite(edge.source, edge.target)
    return [-1 if node in fixed_nodes else sets.find(node) for node in range(len(graph))]


def shifted(plan: ScalePlan, nodes: Collection[int], octaves: int) -> ScalePlan:
    """The plan with these nodes moved, as far as its limits allow."""
    exponents = list(plan.exponents)
    for node in nodes:
        exponents[node] = bounded(exponents[node] + octaves)
    return replace(plan, exponents=tuple(exponents))


def bounded(exponent: int) -> int:
    """The nearest exponent that a plan can hold."""
    return max(-LARGEST_EXPONENT, min(LARGEST_EXPONENT, exponent))
