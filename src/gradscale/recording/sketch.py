"""The network of a run, one node a use of a module, from the first backward pass that is seen."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn

from gradscale.backward.graph import BackwardGraph, walk
from gradscale.backward.names import module_places, plain_modules
from gradscale.emulation.later_passes import Roots
from gradscale.plans.disjoint_sets import DisjointSets
from gradscale.watching.passes import listen, stop_listening

MOST_USES = 4
"""A module that is used more often, as the cell of a loop over time, is one node."""


class Sketch(NamedTuple):
    """Modules and the edges between them, from the loss down.

    Attributes:
        nodes: what each is called: the module, or which of its uses it is.
        edges: pairs of nodes.
        modules: the module of each node, under whose name it was measured.
    """

    nodes: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    modules: tuple[str, ...]

    def line(self, ids: Mapping[str, Sequence[int]]) -> dict[str, object]:
        """The line of a recording, given the ids of its rows by name."""
        rows = {str(node): ids[name][0] for node, name in enumerate(self.modules) if ids.get(name)}
        return {"kind": "structure", "nodes": self.nodes, "edges": self.edges, "rows": rows}


def sketch(graph: BackwardGraph, model: nn.Module) -> Sketch:
    """The graph with all nodes of one use of a module as one.

    A module that is used in two places, as an embedding that is the output layer as well, is two
    nodes: drawn as one, it would tie both ends of the network together.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
        >>> drawn = sketch(BackwardGraph.of(model(torch.ones(1, 2)).sum()), model)
        >>> drawn.nodes, drawn.edges
        (('2', '0'), ((0, 1),))
    """
    modules = [None if place is None else place.module for place in module_places(graph, model)]
    uses = _uses(graph, modules)
    names = _names(uses, modules, model)
    # Numbered as they are met from the loss down, which is the order of the drawing.
    numbers = {use: number for number, use in enumerate(dict.fromkeys(uses.values()))}
    edges: dict[tuple[int, int], None] = {}
    for edge in graph.edges:
        source, target = uses.get(edge.source), uses.get(edge.target)
        if source is not None and target is not None and source != target:
            edges[numbers[source], numbers[target]] = None
    owners = tuple(modules[use] or "" for use in numbers)
    return Sketch(tuple(names[use] for use in numbers), tuple(edges), owners)


def _uses(graph: BackwardGraph, modules: Sequence[str | None]) -> dict[int, int]:
    """For each node of a module the first node of the same use, which stands for it."""
    # A parameter's own node joins all uses of it, and belongs to none.
    leaves = set(graph.leaves)
    inside = [n for n, module in enumerate(modules) if module is not None and n not in leaves]
    # Nodes that touch within a module are one use of it; a second call touches the first nowhere.
    sets, known = DisjointSets(len(modules)), set(inside)
    for node in inside:
        for number in graph.edges_from(node):
            below = graph.edges[number].target
            if below in known and modules[below] == modules[node]:
                sets.unite(node, below)
    return _merged({node: sets.find(node) for node in inside}, modules)


def _merged(uses: dict[int, int], modules: Sequence[str | None]) -> dict[int, int]:
    """The uses of a module that has too many of them as one."""
    found: dict[str | None, list[int]] = {}
    for use in dict.fromkeys(uses.values()):
        found.setdefault(modules[use], []).append(use)
    one = {use: them[0] for them in found.values() if len(them) > MOST_USES for use in them}
    return {node: one.get(use, use) for node, use in uses.items()}


def _names(
    uses: Mapping[int, int], modules: Sequence[str | None], model: nn.Module
) -> dict[int, str]:
    """What each use is called, by the node that stands for it."""
    found: dict[str, list[int]] = {}
    for use in dict.fromkeys(uses.values()):
        found.setdefault(modules[use] or "", []).append(use)
    names: dict[int, str] = {}
    for module, them in found.items():
        tied = _sharing(model, module) if len(them) > 1 else [module]
        if len(tied) == len(them):
            # Uses come from the loss down, modules as they were made, which is mostly the way up.
            names |= dict(zip(them, reversed(tied), strict=True))
        else:
            names |= {use: f"{module} ({len(them) - i})" for i, use in enumerate(them)}
    return names


def _sharing(model: nn.Module, module: str) -> list[str]:
    """The modules that own a parameter of `module`, itself among them."""
    owned = {
        name: {id(parameter) for parameter in part.parameters(recurse=False)}
        for name, part in plain_modules(model)
    }
    own = owned.get(module, set())
    return [name for name, theirs in owned.items() if own & theirs] or [module]


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
    def _around(self, tensors: Roots) -> Generator[None]:
        given = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        roots = [root for root in given if isinstance(root, Tensor) and root.requires_grad]
        # A pass that begins at an edge, inside the network, would draw a part of it only.
        if len(roots) == len(given):
            # Before the pass runs, as it may free the graph.
            found = sketch(walk(roots).graph, self._model)
            if found.nodes:
                self.sketch = found
                self.leave()
        yield
