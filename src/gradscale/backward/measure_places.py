"""Which tensors of a backward graph are worth counting.

Only tensors of reduced precision limit a plan, and most of them are met twice, as what one node
produces and as what arrives at the next. A product is counted on its own only where that says
something new: where several are added, at a leaf, and where the plan multiplies on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from gradscale.backward.graph import BackwardGraph, Edge
from gradscale.backward.measurements import Kind
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


def is_reduced(dtype: torch.dtype | None) -> bool:
    """Whether tensors of this dtype limit a plan: floats of fewer than 32 bits."""
    return dtype is not None and dtype not in _UNLIMITED and _floats(dtype)


def _floats(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


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
    places: list[CountedPlace] = []
    leaves = set(graph.leaves)
    for node, arrives in enumerate(graph.arrives):
        if node in leaves:
            continue
        edges = [graph.edges[number] for number in graph.edges_from(node)]
        reduced = [edge for edge in edges if is_reduced(_dtype_of(graph, edge))]
        wanted = any(is_reduced(arrival.dtype) for arrival in arrives)
        cast = any(arrival.dtype in _UNLIMITED for arrival in arrives) and bool(reduced)
        if wanted or cast or (products and multiplies(graph.names[node])):
            dtype, device = _narrowest(graph, node)
            if dtype is not None and device is not None:
                places.append(CountedPlace(node, "arrived", -1, -1, format_name(dtype), device))
        # A product that is rounded to a narrower format than its tensor has lost what it lost
        # before anybody else meets it.
        rounded = edges if products and multiplies(graph.names[node]) else []
        for edge in edges:
            if edge not in reduced and (edge not in rounded or edge.target in leaves):
                continue
            if edge.input >= len(graph.arrives[edge.target]):
                continue
            target = graph.arrives[edge.target][edge.input]
            wanted = edge in rounded or _says_more(graph, edge, exponents, leaves)
            if wanted and target.device and target.dtype and _floats(target.dtype):
                name = format_name(target.dtype)
                place = CountedPlace(
                    node, "produced", edge.target, edge.output, name, target.device
                )
                places.append(place)
    return places


def _dtype_of(graph: BackwardGraph, edge: Edge) -> torch.dtype | None:
    arrives = graph.arrives[edge.target]
    return arrives[edge.input].dtype if edge.input < len(arrives) else None


def _narrowest(graph: BackwardGraph, node: int) -> tuple[torch.dtype | None, torch.device | None]:
    arrivals = [arrival for arrival in graph.arrives[node] if arrival.dtype is not None]
    floats = [arrival for arrival in arrivals if arrival.dtype and _floats(arrival.dtype)]
    if not floats:
        return None, None
    arrival = min(floats, key=lambda a: a.dtype.itemsize if a.dtype else 0)
    return arrival.dtype, arrival.device


def _says_more(
    graph: BackwardGraph, edge: Edge, exponents: Sequence[int], leaves: set[int]
) -> bool:
    return (
        edge.target in leaves
        or len(graph.edges_into(edge.target)) > 1
        or len(graph.arrives[edge.target]) > 1
        or exponents[edge.source] != exponents[edge.target]
    )
