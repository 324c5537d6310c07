"""What nodes and parameters are called, once a model is known."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from functools import cached_property

import torch
from torch import Tensor

from gradscale.backward.graph import BackwardGraph
from gradscale.backward.names import module_places
from gradscale.layerwise.track import Track
from gradscale.owning_module import owning_module
from gradscale.plans.decision_report import structure_report
from gradscale.plans.structure_report import StructureReport


class _NodeNames(Mapping[int, str]):
    """What nodes are called. The walk that finds out begins when somebody asks: few planners do.

    Whoever keeps the names keeps no model alive; those that were not asked for go with it.
    """

    def __init__(self, graph: BackwardGraph, model: torch.nn.Module) -> None:
        self._graph, self._model = graph, weakref.ref(model)

    @cached_property
    def _names(self) -> dict[int, str]:
        model = self._model()
        places = () if model is None else module_places(self._graph, model)
        return {node: str(place) for node, place in enumerate(places) if place is not None}

    def __getitem__(self, node: int) -> str:
        return self._names[node]

    def __iter__(self) -> Iterator[int]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return repr(self._names)


class Naming:
    """The names of a model's parts. Keeps the model alive for nobody.

    Where nobody has named a model, the one that holds a graph's parameters is looked for, once.
    """

    def __init__(self) -> None:
        self._model: weakref.ref[torch.nn.Module] | None = None
        self._looked = False
        self.parameters: Mapping[int, str] = {}

    def know(self, model: torch.nn.Module) -> None:
        """Takes the names of this model from now on."""
        self._model = weakref.ref(model)
        self.parameters = {id(p): name for name, p in model.named_parameters()}

    def of(self, track: Track) -> Mapping[int, str]:
        """For each node of a track where it is in the model, as far as known."""
        model = self._model_of(track.graph)
        return {} if model is None else _NodeNames(track.graph, model)

    def place(self, graph: BackwardGraph, node: int) -> str:
        """Where a node is, as ``" (in encoder.0)"``; empty if no model is known."""
        model = self._model_of(graph)
        place = None if model is None else module_places(graph, model)[node]
        return "" if place is None else f" ({'in ' if place.inside else ''}{place})"

    def parameter(self, parameter: Tensor | None) -> str:
        """What a parameter is called, or how large it is."""
        if parameter is None:
            return "a parameter that is gone"
        unnamed = f"a parameter of shape {tuple(parameter.shape)}"
        return self.parameters.get(id(parameter), unnamed)

    def _model_of(self, graph: BackwardGraph) -> torch.nn.Module | None:
        if self._model is None and not self._looked:
            self._looked = True
            held = (it for it in graph.parameters().values() if it is not None)
            model = owning_module(held)
            if model is not None:
                self.know(model)
        return None if self._model is None else self._model()

    def describe(self, track: Track) -> StructureReport | None:
        """How many loss scales a track needs, where and why; None before it was measured."""
        if track.frozen is not None:
            return StructureReport((), track.anchor, frozen=track.frozen)
        if track.decision is None:
            return None
        return structure_report(track.decision, track.graph, self.of(track))
