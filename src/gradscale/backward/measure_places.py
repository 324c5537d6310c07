"""Which tensors of a backward graph are worth counting.

Only tensors of reduced precision limit a plan, and most of them are met twice, as what one node
produces and as what arrives at the next. A product is counted on its own only where that says
something new: where several are added, at a leaf, and where the plan multiplies on the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import torch

from gradscale.backward.graph import BackwardGraph
from gradscale.backward.measurements import Kind
from gradscale.backward.structure import Arrival, Structure
from gradscale.backward.topology import Edge
from gradscale.formats import FloatFormat

PRODUCTS = {
    "AddmmBackward0",
    "AddmvBackward0",
    "BaddbmmBackward0",
    "BmmBackward0",
    "ConvolutionBackward0",
    "LinearBackward0",
    "MmBackward0",
    "MvBackward0",
}
"""The nodes that multiply their gradient by a matrix."""

_ATTENTION = ("EmulatedAttention", "ScaledDotProduct")

_MOVING = {
    "AliasBackward0", "CloneBackward0", "PermuteBackward0", "ReshapeAliasBackward0",
    "SqueezeBackward0", "SqueezeBackward1", "SqueezeBackward2", "TBackward0", "TransposeBackward0",
    "UnsafeViewBackward0", "UnsqueezeBackward0", "ViewBackward0",
}  # fmt: skip
"""The nodes that hand on what they receive, each element once, wherever that then lies."""

_REAL = {torch.complex32: torch.float16}
_UNLIMITED = {torch.float32, torch.float64, torch.complex64, torch.complex128}


class CountedPlace(NamedTuple):
    """One row of a measurement; `output` is the edge's, -1 for what arrives or a weight."""

    node: int
    kind: Kind
    target: int
    output: int
    format: str
    device: torch.device


@cache
def is_reduced(dtype: torch.dtype | None) -> bool:
    """Whether tensors of this dtype limit a plan: floats of fewer than 32 bits."""
    return dtype is not None and dtype not in _UNLIMITED and _floats(dtype)


def _floats(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


@cache
def format_name(dtype: torch.dtype) -> str:
    """The name of the format in which the components of a tensor are stored.

    Example:
        >>> format_name(torch.bfloat16), format_name(torch.complex32), format_name(torch.float64)
        ('bf16', 'fp16', 'fp32')
    """
    if dtype in _UNLIMITED:
        return "fp32"
    return FloatFormat.of(_REAL.get(dtype, dtype)).name


def multiplies(name: str) -> bool:
    """Whether a node reads its gradient as the operand of a product, attention included.

    Example:
        >>> multiplies("AddmmBackward0"), multiplies("EmulatedAttentionBackward")
        (True, True)
        >>> multiplies("GeluBackward0")
        False
    """
    return name in PRODUCTS or name.startswith(_ATTENTION)


def places_of(
    graph: BackwardGraph, exponents: Sequence[int], *, products: bool = False
) -> list[CountedPlace]:
    """What to count in a graph: see the module.

    Args:
        graph: the graph.
        exponents: the plan's, one for each node.
        products: count what arrives at every matrix product and what it makes, whatever its dtype.

    Returns:
        In the order of the nodes, what arrives before what is produced.
    """
    return list(_places(graph.structure, tuple(exponents), products))


# A plan is kept for many steps, and finding its places takes as long as counting small tensors.
@lru_cache(maxsize=16)
def _places(
    structure: Structure, exponents: tuple[int, ...], products: bool
) -> tuple[CountedPlace, ...]:
    places: list[CountedPlace] = []
    leaves = frozenset(structure.leaves)
    for node, name in enumerate(structure.names):
        if node not in leaves:
            multiplying = products and multiplies(name)
            edges = structure.edges[structure.first_edge[node] : structure.first_edge[node + 1]]
            places += _arriving(structure, node, edges, multiplying)
            places += _produced(structure, edges, exponents, leaves, multiplying)
    return tuple(places)


def _arriving(
    structure: Structure, node: int, edges: Sequence[Edge], multiplying: bool
) -> Iterator[CountedPlace]:
    arrives = structure.arrives[node]
    wanted = any(is_reduced(arrival.dtype) for arrival in arrives)
    cast = any(arrival.dtype in _UNLIMITED for arrival in arrives) and any(
        is_reduced(structure.arrival(edge).dtype) for edge in edges
    )
    if wanted or cast or multiplying:
        dtype, device = _narrowest(arrives)
        if dtype is not None and device is not None:
            yield CountedPlace(node, "arrived", -1, -1, format_name(dtype), device)


def _produced(
    structure: Structure,
    edges: Sequence[Edge],
    exponents: Sequence[int],
    leaves: frozenset[int],
    multiplying: bool,
) -> Iterator[CountedPlace]:
    for edge in edges:
        # A product that is rounded to a narrower format than its tensor has lost what it lost
        # before anybody else meets it.
        rounded = multiplying and edge.target not in leaves
        target = structure.arrival(edge)
        if not (rounded or is_reduced(target.dtype)):
            continue
        wanted = multiplying or _says_more(structure, edge, exponents, leaves)
        if wanted and target.device and target.dtype and _floats(target.dtype):
            name = format_name(target.dtype)
            yield CountedPlace(
                edge.source, "produced", edge.target, edge.output, name, target.device
            )


def _narrowest(arrives: Sequence[Arrival]) -> tuple[torch.dtype | None, torch.device | None]:
    floats = [arrival for arrival in arrives if arrival.dtype and _floats(arrival.dtype)]
    if not floats:
        return None, None
    arrival = min(floats, key=lambda a: a.dtype.itemsize if a.dtype else 0)
    return arrival.dtype, arrival.device


def _says_more(
    structure: Structure, edge: Edge, exponents: Sequence[int], leaves: frozenset[int]
) -> bool:
    return (
        edge.target in leaves
        or len(structure.edges_into[edge.target]) > 1
        or len(structure.arrives[edge.target]) > 1
        or exponents[edge.source] != exponents[edge.target]
    )


def moved(graph: BackwardGraph, exponents: Sequence[int]) -> dict[int, int]:
    """For each node that receives only what another did, moved in memory, the first such node.

    Nothing new is to be counted there: not behind a view or a copy of one gradient, without a join,
    a cast, a multiplication, or a user's hook in between, which may change what arrives.

    Args:
        graph: the graph.
        exponents: the plan's, one for each node.

    Example:
        >>> x = torch.ones(2, 3, dtype=torch.float16, requires_grad=True)
        >>> moved(BackwardGraph.of(x.sin().t().contiguous().sum()), [0] * 5)
        {2: 1, 3: 1}
    """
    return _moved(graph.structure, tuple(exponents), graph.held)


@lru_cache(maxsize=16)
def _moved(
    structure: Structure, exponents: tuple[int, ...], held: frozenset[int]
) -> dict[int, int]:
    sources: dict[int, int] = {}
    for edge in structure.edges:
        alone = len(structure.edges_into[edge.target]) == 1 and edge.target not in held
        if (
            alone
            and structure.names[edge.source] in _MOVING
            and _kinds_of(structure, edge.source) == _kinds_of(structure, edge.target)
            and exponents[edge.source] == exponents[edge.target]
        ):
            sources[edge.target] = sources.get(edge.source, edge.source)
    return sources


def _kinds_of(structure: Structure, node: int) -> list[tuple[object, object]]:
    return [(arrival.dtype, arrival.device) for arrival in structure.arrives[node]]
