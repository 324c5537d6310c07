"""What two iterations of one model have in common: nodes, edges, leaves and a signature."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch

from gradscale.backward.topology import Edge, Topology
from gradscale.backward.user_functions import is_custom
from gradscale.compiled.opened import COMPILED
from gradscale.compiled.spans import Span, spans_of
from gradscale.live_nodes import InputMetadata, LiveNode, expected_by

# Reentrant checkpointing runs a backward pass of its own inside this node, over leaves that no walk
# from the loss can see.
REENTRANT = "CheckpointFunctionBackward"
# What `register_full_backward_hook` puts around a module: its hooks read what passes there.
WATCHING = "BackwardHookFunctionBackward"
# `LossEntry`'s node: what arrives there has arrived by the time a plan is attached.
ENTRY = "_LossEntryBackward"


class Arrival(NamedTuple):
    """What a node expects to receive at one of its inputs: the dtype, device and shape."""

    dtype: torch.dtype | None
    device: torch.device | None
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Structure:
    """A backward graph without anything that belongs to one iteration.

    Attributes:
        names: of the nodes, in topological order from the roots.
        edges: sorted by source and output.
        roots: the nodes at which gradients enter.
        leaves: the nodes that accumulate into a parameter's `.grad`, each once.
        arrives: per node what it expects at each of its inputs, as first walked.
        spans: the nodes that lie inside one compiled node, for each of these.
        custom: the nodes of custom functions, whoever wrote them.
    """

    names: tuple[str, ...]
    edges: tuple[Edge, ...]
    roots: tuple[int, ...]
    leaves: tuple[int, ...]
    arrives: tuple[tuple[Arrival, ...], ...]
    spans: tuple[Span, ...] = ()
    custom: tuple[int, ...] = ()

    def __hash__(self) -> int:
        return hash(self.signature)

    @cached_property
    def signature(self) -> str:
        """A digest of names, edges, roots and dtypes; not of shapes, so batches may vary."""
        dtypes = [[str(arrival.dtype) for arrival in arrivals] for arrivals in self.arrives]
        parts: tuple[object, ...] = (self.names, [tuple(e) for e in self.edges], self.roots, dtypes)
        if self.spans:
            parts += (self.spans,)
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def arrival(self, edge: Edge) -> Arrival:
        """What the target of an edge expects there; nothing where torch does not say."""
        arrivals = self.arrives[edge.target]
        return arrivals[edge.input] if edge.input < len(arrivals) else Arrival(None, None, ())

    @cached_property
    def first_edge(self) -> tuple[int, ...]:
        """Node i's edges are `edges[first_edge[i] : first_edge[i + 1]]`."""
        leaving = [0] * (len(self.names) + 1)
        for edge in self.edges:
            leaving[edge.source + 1] += 1
        return tuple(accumulate(leaving))

    @cached_property
    def edges_into(self) -> tuple[tuple[int, ...], ...]:
        """For each node the numbers of the edges that lead to it."""
        targets = [edge.target for edge in self.edges]
        numbers = sorted(range(len(targets)), key=targets.__getitem__)
        first = [0] * (len(self.names) + 1)
        for target in targets:
            first[target + 1] += 1
        return tuple([tuple(numbers[a:b]) for a, b in pairwise(accumulate(first))])

    @cached_property
    def bottoms(self) -> tuple[int, ...]:
        """The nodes below which there are only leaves. Whoever shares a node shares one of them."""
        inner = set(range(len(self.names))).difference(self.leaves)
        above = {edge.source for edge in self.edges if edge.target in inner}
        return tuple(sorted(inner - above))

    @cached_property
    def inner_edges(self) -> frozenset[int]:
        """The edges that leave a node inside a compiled one, which multiplies them itself."""
        inner = {node for span in self.spans for node in span.nodes}
        return frozenset(i for i, edge in enumerate(self.edges) if edge.source in inner)

    @cached_property
    def closed(self) -> frozenset[int]:
        """The compiled nodes whose inside is not known."""
        return frozenset(i for i, name in enumerate(self.names) if name == COMPILED)

    @cached_property
    def reentrant(self) -> frozenset[int]:
        """The nodes that run a backward pass of their own over leaves hidden from this graph."""
        return frozenset(i for i, name in enumerate(self.names) if name == REENTRANT)

    @cached_property
    def pinned(self) -> frozenset[int]:
        """The nodes that stay at the loss scale in every iteration."""
        kinds = (REENTRANT, WATCHING, ENTRY)
        pinned = {i for i, name in enumerate(self.names) if name in kinds}
        pinned.update(node for span in self.spans for node in span.pinned)
        # A gradient from outside joins those from inside there, and only the latter are scaled.
        return frozenset(pinned | {edge.target for edge in self.edges}.intersection(self.roots))

    @cached_property
    def leaves_of_root(self) -> dict[int, tuple[int, ...]]:
        """For each root the leaves that a gradient entering there reaches."""
        if len(self.roots) == 1:
            return {self.roots[0]: self.leaves}
        return {root: self._leaves_below(root) for root in self.roots}

    def _leaves_below(self, root: int) -> tuple[int, ...]:
        reached = [False] * len(self.names)
        reached[root] = True
        for edge in self.edges:  # sorted by source, so a source is decided before it is met
            if reached[edge.source]:
                reached[edge.target] = True
        return tuple(leaf for leaf in self.leaves if reached[leaf])


def arrivals_of(node: LiveNode) -> tuple[Arrival, ...]:
    """What a live node expects; empty where this version of torch does not say."""
    return tuple([_arrival(entry) for entry in expected_by(node)])


def _arrival(entry: InputMetadata) -> Arrival:
    try:
        shape = tuple([*map(int, entry.shape)])
    except (RuntimeError, TypeError):  # nested tensors and symbolic sizes have no plain shape
        shape = ()
    return Arrival(entry.dtype, entry.device, shape)


class _Described:
    """The structure of one topology with one assignment of dtypes, read off its first nodes."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.structure: Structure | None = None

    def of(self, nodes: Sequence[LiveNode]) -> Structure:
        if self.structure is None:
            known: dict[tuple[Arrival, ...], tuple[Arrival, ...]] = {}
            found = map(arrivals_of, nodes)
            arrives = tuple([known.setdefault(arrivals, arrivals) for arrivals in found])
            t = self.topology
            spans = spans_of(nodes, t.edges)
            named = enumerate(zip(nodes, t.names, strict=True))
            custom = tuple([i for i, (node, name) in named if is_custom(node, name)])
            self.structure = Structure(t.names, t.edges, t.roots, t.leaves, arrives, spans, custom)
        return self.structure


@lru_cache(maxsize=32)
def structure_of(topology: Topology, kinds: Hashable) -> _Described:
    """What tells a topology's structure from its live nodes, once for each set of dtypes."""
    del kinds
    return _Described(topology)
