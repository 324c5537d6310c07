"""The autograd graph of a loss as plain data."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from gradscale.backward.discovery import discover
from gradscale.backward.structure import Arrival as Arrival
from gradscale.backward.structure import Structure, structure_of
from gradscale.backward.topology import LEAF, TOPOLOGIES
from gradscale.backward.topology import Edge as Edge
from gradscale.backward.user_functions import is_users
from gradscale.backward.user_hooks import watched_numbers
from gradscale.compiled.opened import Opening
from gradscale.live_nodes import LeafNode, LiveNode, expected_by, sequence_numbers

Root = Tensor | Node | GradientEdge


@dataclass(frozen=True, eq=False)
class BackwardGraph:
    """The backward pass from one or several losses as plain data, without a tensor or a node.

    Nodes are numbered in topological order from the roots: an edge leads from a smaller number to
    a larger one. Two iterations of the same model number their nodes alike and have equal
    signatures; leaves are told apart by the order in which they are met.

    Attributes:
        structure: what all iterations of the model share.
        pinned: nodes that must stay at the loss scale: those whose gradient the user watches
            with a hook or `retain_grad`, and reentrant checkpoints.
        freed: leaves that need not: whoever divides their gradient knows their exponent.
        unproven: nodes of users' functions that were not seen to be linear; they must stay, too.

    Example:
        >>> w = torch.ones(3, requires_grad=True)
        >>> graph = BackwardGraph.of((w * 2).sum())
        >>> graph.names
        ('SumBackward0', 'MulBackward0', 'torch::autograd::AccumulateGrad')
        >>> graph.edges[0]
        Edge(source=0, output=0, target=1, input=0)
        >>> graph.parameters()[2] is w
        True
    """

    structure: Structure
    pinned: frozenset[int]
    _parameters: tuple[weakref.ref[Tensor], ...]
    _losses: tuple[weakref.ref[Tensor], ...]
    freed: frozenset[int] = frozenset()
    unproven: frozenset[int] = frozenset()

    @classmethod
    def of(cls, losses: Root | Sequence[Root]) -> BackwardGraph:
        """Reads the graph of a loss, or of several losses together.

        Raises:
            ValueError: a loss does not require a gradient.
        """
        return walk(losses).graph

    def __len__(self) -> int:
        return len(self.structure.names)

    def __repr__(self) -> str:
        return (
            f"BackwardGraph({len(self)} nodes, {len(self.edges)} edges, "
            f"{len(self.leaves)} leaves, signature={self.signature[:8]!r})"
        )

    @property
    def signature(self) -> str:
        """Equal for two iterations of a model; differs in name, edge, leaf or dtype otherwise."""
        return self.structure.signature

    @property
    def names(self) -> tuple[str, ...]:
        """What torch calls each node, e.g. `MulBackward0`."""
        return self.structure.names

    @property
    def edges(self) -> tuple[Edge, ...]:
        """All edges, sorted by source and output; an edge is known by its place here."""
        return self.structure.edges

    @property
    def roots(self) -> tuple[int, ...]:
        """The nodes that produced the losses."""
        return self.structure.roots

    @property
    def leaves(self) -> tuple[int, ...]:
        """The nodes that accumulate into a parameter's `.grad`."""
        return self.structure.leaves

    @property
    def arrives(self) -> tuple[tuple[Arrival, ...], ...]:
        """Per node the dtype, device and shape of what arrives at each of its inputs.

        Dtypes and devices are this iteration's; shapes are those of the structure's first walk.
        """
        return self.structure.arrives

    def edges_from(self, node: int) -> range:
        """The numbers of the edges that leave a node."""
        first = self.structure.first_edge
        return range(first[node], first[node + 1])

    def edges_into(self, node: int) -> tuple[int, ...]:
        """The numbers of the edges that lead to a node."""
        return self.structure.edges_into[node]

    def parameters(self) -> dict[int, Tensor | None]:
        """For each leaf its parameter, None if that is gone."""
        return {leaf: ref() for leaf, ref in zip(self.leaves, self._parameters, strict=True)}

    def hidden(self, parameters: Iterable[Tensor]) -> list[Tensor]:
        """Those of `parameters` that have a gradient but are no leaf of this graph.

        Shards are left out: the graph's leaf is the whole parameter that FSDP gathers.

        A custom function that runs a backward pass of its own hides its leaves; so does reentrant
        checkpointing. Their gradients come at the exponent of the node that hides them.
        """
        seen = {id(parameter) for parameter in self.parameters().values()}
        return [
            p for p in parameters if p.grad is not None and id(p) not in seen and not _is_shard(p)
        ]

    def pinning(self, nodes: Iterable[int]) -> BackwardGraph:
        """The same graph with more nodes pinned to the loss scale."""
        return replace(self, pinned=self.pinned | frozenset(nodes))

    def freeing(self, leaves: Iterable[int]) -> BackwardGraph:
        """The same graph with leaves that take exponents of their own."""
        return replace(self, freed=self.freed | frozenset(leaves))

    def proving(self, nodes: Iterable[int]) -> BackwardGraph:
        """The same graph with users' functions that were seen to be linear."""
        unproven = self.unproven.difference(nodes)
        return self if unproven == self.unproven else replace(self, unproven=unproven)

    def with_leaves(self, leaves: Mapping[int, Tensor]) -> BackwardGraph:
        """The same graph in which these nodes are the leaves of these tensors.

        While a compiler traces, other nodes stand in the places of leaves.
        """
        known = {leaf: ref for leaf, ref in zip(self.leaves, self._parameters, strict=True)}
        known |= {leaf: weakref.ref(tensor) for leaf, tensor in leaves.items()}
        names = tuple(LEAF if node in known else name for node, name in enumerate(self.names))
        structure = replace(self.structure, names=names, leaves=tuple(sorted(known)))
        parameters = tuple(known[leaf] for leaf in structure.leaves)
        return replace(self, structure=structure, pinned=structure.pinned, _parameters=parameters)

    @property
    def held(self) -> frozenset[int]:
        """The inner nodes that must stay at the loss scale: pinned ones and unproven ones."""
        return self.pinned | self.unproven

    @property
    def fixed(self) -> frozenset[int]:
        """The nodes at the loss scale, whatever the plan: leaves that are not freed, and held."""
        return frozenset(self.leaves).difference(self.freed) | self.held

    def walk_again(self) -> Walk:
        """Walks from the same losses, which must still be alive; leaves no node in the graph.

        Raises:
            RuntimeError: a loss is gone, was freed or changed since.
        """
        losses = [ref() for ref in self._losses]
        if not losses or any(loss is None or loss.grad_fn is None for loss in losses):
            raise RuntimeError(
                "the losses of this BackwardGraph are gone. Use it before they are, "
                "or pass the `Walk` that `walk(losses)` returns."
            )
        again = walk(cast(list[Tensor], losses))
        if again.graph.signature != self.signature:
            raise RuntimeError("the losses of this BackwardGraph changed since it was read.")
        graph = again.graph.pinning(self.pinned).freeing(self.freed)
        return Walk(replace(graph, unproven=self.unproven), again.nodes)


class Walk(NamedTuple):
    """A graph together with its live nodes, `nodes[i]` being node i. Drop it once it is used."""

    graph: BackwardGraph
    nodes: list[LiveNode]


def walk(losses: Root | Sequence[Root]) -> Walk:
    """Walks the autograd graph once, without recursion, in linear time.

    Everything that does not belong to this iteration is looked up by structure, so that walking a
    structure for the second time costs well under a microsecond a node.

    Args:
        losses: tensors, nodes or gradient edges; several share one graph.

    Returns:
        The plain graph and the nodes, which keep the saved tensors alive until they are dropped.

    Raises:
        ValueError: a loss does not require a gradient.

    Example:
        >>> w = torch.ones(3, requires_grad=True)
        >>> graph, nodes = walk((w * 2).sum())
        >>> graph, [node.name() for node in nodes[:2]]  # doctest: +ELLIPSIS
        (BackwardGraph(3 nodes, 2 edges, 1 leaves, signature=...), ['SumBackward0', 'MulBackward0'])
    """
    one = isinstance(losses, GradientEdge) or not isinstance(losses, list | tuple)
    several = [losses] if one else list(cast(Sequence[Root], losses))
    opening = Opening()
    roots = list(dict.fromkeys(_root_node(cast(Root, loss), opening) for loss in several))
    discovery = discover(roots, opening)
    topology = TOPOLOGIES.of(discovery, len(roots))
    nodes = [*map(discovery.nodes.__getitem__, topology.order)]
    parameters = [cast(LeafNode, nodes[leaf]).variable for leaf in topology.leaves]
    kinds = _kinds(parameters, [nodes[place] for place in topology.casts])
    structure = structure_of(topology, (kinds, opening.layout(nodes))).of(nodes)
    graph = BackwardGraph(
        structure,
        _pinned(structure, nodes),
        tuple(map(weakref.ref, parameters)),
        tuple(weakref.ref(loss) for loss in several if isinstance(loss, Tensor)),
        unproven=frozenset(i for i in structure.custom if is_users(nodes[i])),
    )
    return Walk(graph, nodes)


def _kinds(parameters: Sequence[Tensor], casts: Iterable[LiveNode]) -> Hashable:
    """All dtypes and devices that differ between iterations of one program: the rest follow."""
    arriving = [entry for node in casts for entry in expected_by(node)[:1]]
    return (
        tuple([parameter.dtype for parameter in parameters]),
        tuple([parameter.device for parameter in parameters]),
        tuple([(entry.dtype, entry.device) for entry in arriving]),
    )


def _root_node(loss: Root, opening: Opening) -> LiveNode:
    if isinstance(loss, Tensor):
        if not loss.requires_grad:
            raise ValueError(
                f"`BackwardGraph.of(loss)` needs a loss that requires a gradient, got {loss!r}. "
                "Is the forward pass under `torch.no_grad()`, or every parameter frozen?"
            )
        loss = torch.autograd.graph.get_gradient_edge(loss)
    if isinstance(loss, GradientEdge):
        return opening.at(loss.node, loss.output_nr)[0] or cast(LiveNode, loss.node)
    return cast(LiveNode, loss)


def _is_shard(parameter: Tensor) -> bool:
    return hasattr(parameter, "_local_tensor") or hasattr(parameter, "_fsdp_flattened")


def _pinned(structure: Structure, nodes: Sequence[LiveNode]) -> frozenset[int]:
    pinned = structure.pinned
    numbers = watched_numbers()
    if not numbers:
        return pinned
    here = sequence_numbers(nodes)
    if numbers.isdisjoint(here):
        return pinned
    return pinned | {i for i, number in enumerate(here) if number in numbers}
