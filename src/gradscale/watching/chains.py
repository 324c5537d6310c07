"""The way from a parameter to the node that makes its gradient: casts, transposes and views."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gradscale.backward.graph import BackwardGraph
from gradscale.backward.measure_places import is_reduced
from gradscale.backward.topology import CAST

# What these pass on is what arrived: moved, cut or cast, but not computed.
_MOVING = {
    "AliasBackward", "AsStridedBackward", "CloneBackward", "ConjBackward", "ContiguousBackward",
    "CopyBackwards", "DiagonalBackward", "FlattenBackward", "MovedimBackward", "NarrowBackward",
    "PermuteBackward", "RedistributeBackward", "ReshapeAliasBackward", "SelectBackward",
    "SliceBackward", "SplitBackward", "SplitWithSizesBackward", "SqueezeBackward", "TBackward",
    "ToCopyBackward", "ToPaddedTensorBackward", "TransposeBackward", "UnbindBackward",
    "UnflattenBackward", "UnsafeSplitBackward", "UnsafeViewBackward", "UnsqueezeBackward",
    "ViewAsRealBackward", "ViewAsComplexBackward", "ViewBackward", "_FromTorchTensorBackward",
    "_ToTorchTensorBackward",
}  # fmt: skip


@dataclass(frozen=True)
class Chain:
    """One parameter's leaf, the nodes that only move its gradient, and those that make it.

    Attributes:
        leaf: the node that accumulates.
        nodes: the leaf, and everything between it and the heads.
        heads: the nodes at which the parameter is used.
    """

    leaf: int
    nodes: frozenset[int]
    heads: frozenset[int]

    @staticmethod
    def of(graph: BackwardGraph, leaf: int) -> Chain:
        """Follows the edges upwards from a leaf."""
        nodes, heads, ahead = {leaf}, set[int](), [leaf]
        while ahead:
            for number in graph.edges_into(ahead.pop()):
                source = graph.edges[number].source
                if source in nodes:
                    continue
                if is_moving(graph.names[source]) and len(graph.edges_from(source)) == 1:
                    nodes.add(source)
                    ahead.append(source)
                else:
                    heads.add(source)
        return Chain(leaf, frozenset(nodes), frozenset(heads))

    def narrowest(self, graph: BackwardGraph) -> list[int]:
        """Where the gradient has the fewest bits; the sum of several uses where there is one.

        A parameter used in several places has a node for each until their gradients are added.
        """
        return self._narrowest(graph, self.leaf, _size(graph, self.nodes))

    def _narrowest(self, graph: BackwardGraph, node: int, least: int) -> list[int]:
        # The lowest such node: what was summed above it has been summed by then.
        if _size(graph, [node]) == least:
            return [node]
        above = {graph.edges[number].source for number in graph.edges_into(node)} & self.nodes
        return [found for each in sorted(above) for found in self._narrowest(graph, each, least)]

    def exact(self, graph: BackwardGraph, node: int) -> list[int]:
        """The casts into a narrow node, if nothing else leads there: before them nothing is lost.

        Returns:
            What to count; the node itself if its gradient is not merely a rounded one.
        """
        sources = [graph.edges[number].source for number in graph.edges_into(node)]
        # All of them: a sum with one rounded gradient has lost what that one lost.
        wide = sources and all(
            source in self.nodes
            and graph.names[source] == CAST
            and not arrives_reduced(graph, source)
            for source in sources
        )
        return sorted(set(sources)) if wide and arrives_reduced(graph, node) else [node]


def is_moving(name: str) -> bool:
    """Whether a node of this name passes its gradient on without computing.

    Example:
        >>> is_moving("TBackward0"), is_moving("torch::autograd::CopyBackwards")
        (True, True)
        >>> is_moving("MulBackward0")
        False
    """
    return name.rpartition("::")[2].rstrip("0123456789") in _MOVING


def arrives_reduced(graph: BackwardGraph, node: int) -> bool:
    """Whether something arrives at a node in fewer than 32 bits."""
    return any(is_reduced(arrival.dtype) for arrival in graph.arrives[node])


def _size(graph: BackwardGraph, nodes: Iterable[int]) -> int:
    """The fewest bytes of an element that arrives at these nodes."""
    arrivals = (arrival for node in nodes for arrival in graph.arrives[node])
    dtypes = (arrival.dtype for arrival in arrivals if arrival.dtype is not None)
    # A double is no narrower place than a single: neither loses anything.
    sizes = (min(4, dtype.itemsize // (1 + dtype.is_complex)) for dtype in dtypes)
    return min(sizes, default=4)
