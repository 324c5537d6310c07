"""Which values of a traced backward pass are gradients, and what is done with them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from gradscale.compiled.linearity import SHAPE_ONLY, is_linear, operator_name


class TracedGradients:
    """The gradients of a backward graph, from those that enter it on.

    Attributes:
        held: the operators whose results are gradients, and the placeholders of those that enter;
            in the order of the graph.
        readers: for each of these, who reads its values.
        nonlinear: the readers that must be given gradients at the loss scale.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.held: dict[fx.Node, None] = {}
        self.readers: dict[fx.Node, list[fx.Node]] = {}
        self.nonlinear: set[fx.Node] = set()
        for node in graph.nodes:
            if node.op == "placeholder":
                if node.name.startswith("tangents") and _floats(node):
                    self._hold(node)
            elif node.op != "output":
                self._read(node)

    @property
    def entering(self) -> Iterator[fx.Node]:
        """The placeholders of gradients."""
        return (node for node in self.held if node.op == "placeholder")

    def _read(self, node: fx.Node) -> None:
        inputs = [source for source in node.all_input_nodes if source in self.held]
        if not inputs or operator_name(node) in SHAPE_ONLY or not _holds_tensors(node):
            return
        for source in inputs:
            self.readers[source].append(node)
        if not is_linear(node, self.held):
            self.nonlinear.add(node)
        if _floats(node):
            self._hold(node)

    def _hold(self, node: fx.Node) -> None:
        self.held[node] = None
        self.readers[node] = []


def tensor_of(node: fx.Node) -> torch.Tensor | None:
    """The fake tensor that a traced operator gives, None if it gives something else."""
    value = node.meta.get("val")
    return value if isinstance(value, torch.Tensor) else None


def _tensors(node: fx.Node) -> Iterator[torch.Tensor]:
    leaves: list[object] = tree_leaves(node.meta.get("val"))
    return (leaf for leaf in leaves if isinstance(leaf, torch.Tensor))


def _holds_tensors(node: fx.Node) -> bool:
    return next(_tensors(node), None) is not None


def _floats(node: fx.Node) -> bool:
    return any(tensor.is_floating_point() or tensor.is_complex() for tensor in _tensors(node))
