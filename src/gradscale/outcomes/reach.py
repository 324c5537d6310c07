"""Which losses lead to which parameters, read off the graphs and remembered while alike."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.autograd.graph import Node


class Reach:
    """The leaves below each loss of a step, walked anew only if the losses are other ones.

    A step on an accelerator asks in each step, good or bad, for it cannot know. Graphs are taken to
    be as before if their losses have the same names, as many nodes were made between them, and the
    first leaf below each is the same tensor.

    Example:
        >>> import torch
        >>> a, b = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
        >>> graphs = [(a * 2).grad_fn, (a * b).grad_fn]
        >>> [len(leaves) for leaves in Reach().below(graphs)]
        [1, 2]
    """

    def __init__(self) -> None:
        self._seen: tuple[object, ...] = ()
        self._below: list[frozenset[int] | None] = []

    def below(self, graphs: Sequence[Node | None]) -> list[frozenset[int] | None]:
        """The ids of the leaves of each graph; None where some are hidden."""
        # Sequence numbers go on from step to step; alike are only the distances between them.
        begin = next((graph._sequence_nr() for graph in graphs if graph is not None), 0)
        seen = tuple(_sketch(graph, begin) for graph in graphs)
        if seen != self._seen:
            leaves = [leaves_of(graph) for graph in graphs]
            self._below = [None if each is None else frozenset(map(id, each)) for each in leaves]
            self._seen = seen
        return self._below


def _sketch(graph: Node | None, begin: int) -> tuple[object, ...]:
    if graph is None:
        return ()
    node, leaf = graph, None
    while node is not None and leaf is None:
        leaf = getattr(node, "variable", None)
        # The last input of most operations that have a parameter is that parameter.
        node = next((n for n, _ in reversed(node.next_functions) if n is not None), None)
    return graph.name(), graph._sequence_nr() - begin, id(leaf)


def leaves_of(graph: Node | None) -> list[Tensor] | None:
    """The tensors that a backward pass would fill; None if some are hidden from it."""
    if graph is None:
        return []
    seen, stack = {graph}, [graph]
    leaves: list[Tensor] = []
    while stack:
        node = stack.pop()
        if node.name() == "CheckpointFunctionBackward":  # reentrant: it runs a graph of its own
            return None
        variable: Tensor | None = getattr(node, "variable", None)
        if variable is not None:
            leaves.append(variable)
        fresh = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= fresh
        stack += fresh
    return leaves
