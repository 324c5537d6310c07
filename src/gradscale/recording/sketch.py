"""The network of a run, one node a module, taken from the first backward pass that is seen."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from gradscale.backward.graph import BackwardGraph, walk
from gradscale.backward.names import module_places
from gradscale.watching.passes import listen, stop_listening


class Sketch(NamedTuple):
    """Modules and the edges between them, from the loss down."""

    nodes: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]

    def line(self, ids: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """The line of a recording, given the ids of its rows by name."""
        rows = {str(node): ids[name][0] for node, name in enumerate(self.nodes) if ids.get(name)}
        return {"kind": "structure", "nodes": self.nodes, "edges": self.edges, "rows": rows}


def sketch(graph: BackwardGraph, model: nn.Module) -> Sketch:
    """The graph with all nodes of a module as one.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
        >>> sketch(BackwardGraph.of(model(torch.ones(1, 2)).sum()), model)
        Sketch(nodes=('2', '0'), edges=((0, 1),))
    """
    numbers: dict[str, int] = {}
    modules = [None if place is None else place.module for place in module_places(graph, model)]
    for module in modules:
        if module is not None:
            numbers.setdefault(module, len(numbers))
    edges: dict[tuple[int, int], None] = {}
    for edge in graph.edges:
        source, target = modules[edge.source], modules[edge.target]
        if source is not None and target is not None and source != target:
            edges[numbers[source], numbers[target]] = None
    return Sketch(tuple(numbers), tuple(edges))


class Sketching:
    """Waits for a backward pass of the model, sketches it, and listens no more.

    Args:
        model: whose network is wanted.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._listening = True
        self.sketch: Sketch | None = None
        listen(self._around)

    def leave(self) -> None:
        """Listens no more."""
        if self._listening:
            stop_listening(self._around)
        self._listening = False

    @contextmanager
    def _around(self, tensors: Any) -> Generator[None]:
        roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        if all(isinstance(root, Tensor) and root.requires_grad for root in roots):
            found = sketch(walk(roots).graph, self._model)
            if found.nodes:
                self.sketch = found
                self.leave()
        yield
