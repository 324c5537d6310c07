"""Which tensors a loss leads to, read off its graph."""

from __future__ import annotations

from torch import Tensor
from torch.autograd.graph import Node


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
