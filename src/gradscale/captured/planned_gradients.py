"""The gradients of a captured step under a plan: its factors are an input of the graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from gradscale.backward.graph import BackwardGraph, Walk, walk
from gradscale.backward.loss_entry import enter
from gradscale.backward.memory_layout import each_once
from gradscale.backward.multipliers import write_powers
from gradscale.captured.traced_counts import TracedCounts
from gradscale.layerwise import Layerwise

Gradients = Sequence[Tensor | None]
SEVERAL_GRAPHS = (
    "`CapturedStep(layerwise=…)`: batches take several ways through the model, and a captured step "
    "follows the plan of one graph; these steps stay at one loss scale. To have a plan for each, "
    "compile the model alone, `torch.compile(model)`, and train with `GradScaler(layerwise=True)`."
)


class GraphFound(RuntimeError):
    """Ends a trace that has shown which graph there is, before there was a factor for each edge."""


def plain_gradients(
    loss: Tensor, scale: Tensor, trained: Sequence[Tensor]
) -> tuple[Gradients, Tensor | None]:
    """The gradients of a scaled loss, None for what it does not depend on; and nothing counted."""
    return torch.autograd.grad(loss * scale, trained, allow_unused=True), None


class PlannedGradients:
    """The same under the plan of a layer-wise scaler, as a compiler takes it in.

        tracing:     the autograd graph is walked, and hooked for good: each edge that a plan may
                     cut is multiplied by its own entry of `factors`, an input of what is compiled
        every step:  `follow()` writes the factors of the plan in force

    So a plan changes without another compilation.

    Args:
        layerwise: who plans.
        trained: the parameters.

    Attributes:
        factors: float32, shape `(edges,)`; empty until a trace has shown the graph.
        graph: that graph, with the parameters as its leaves.
        measuring: the same function, which counts as well.
    """

    def __init__(self, layerwise: Layerwise, trained: Sequence[Tensor]) -> None:
        self._layerwise = layerwise
        self._trained = list(trained)
        self._edges: tuple[int, ...] = ()
        self._written: tuple[int, ...] = ()
        self.graph: BackwardGraph | None = None
        self.counts: TracedCounts | None = None
        self.factors = torch.empty(0, dtype=torch.float32, device=trained[0].device)
        self._plain, self._measuring = _in_graph(self._scaled), _in_graph(self._counted)

    def __call__(
        self, loss: Tensor, scale: Tensor, trained: Sequence[Tensor]
    ) -> tuple[Gradients, Tensor | None]:
        """As `plain_gradients`, under the plan in force."""
        return self._plain(loss, scale, self.factors, *trained), None

    def measuring(
        self, loss: Tensor, scale: Tensor, trained: Sequence[Tensor]
    ) -> tuple[Gradients, Tensor | None]:
        """The same, and what was counted on the way: see `TracedCounts`."""
        counted, *gradients = self._measuring(loss, scale, self.factors, *trained)
        return gradients, counted

    def follow(self) -> None:
        """Brings the plan in force into the factors; costs nothing if they hold it already."""
        if self.graph is None:
            return
        if not len(self.factors):  # made outside of the trace, or it would be a part of it
            self.factors = torch.ones(
                len(self._edges), dtype=torch.float32, device=self.factors.device
            )
        exponents = self.exponents(self.graph)
        if exponents != self._written:
            self._written = exponents
            edges = [self.graph.edges[number] for number in self._edges]
            write_powers(self.factors, [exponents[e.target] - exponents[e.source] for e in edges])

    def exponents(self, graph: BackwardGraph) -> tuple[int, ...]:
        """Those of the plan in force, one for each node of the graph."""
        track = self._layerwise.tracks.of(graph)
        self._layerwise.timing.again |= track.unmeasured
        proven = self._layerwise.functions.proven(graph.signature)
        return track.plan.pinning(graph.proving(proven)).exponents

    def _scaled(self, loss: Tensor, scale: Tensor, factors: Tensor, *trained: Tensor) -> Gradients:
        return self._differentiated(loss, scale, factors, trained)

    def _counted(self, loss: Tensor, scale: Tensor, factors: Tensor, *trained: Tensor) -> Gradients:
        counts = TracedCounts(self._layerwise.planner)
        gradients = self._differentiated(loss, scale, factors, trained, counts)
        self.counts = counts.without_tensors()
        return [counts.packed(loss.device), *gradients]

    def _differentiated(
        self,
        loss: Tensor,
        scale: Tensor,
        factors: Tensor,
        trained: Sequence[Tensor],
        counts: TracedCounts | None = None,
    ) -> Gradients:
        if type(loss) is FakeTensor:  # dynamo asks for shapes; compilers trace a copy, which counts
            return plain_gradients(loss, scale, trained)[0]
        entered = enter(loss, torch.zeros((), device=loss.device, requires_grad=True))
        walked = self._with_parameters(walk(entered), trained)
        if self.graph is None:
            self._know(walked.graph)
            if type(loss) is not Tensor:
                raise GraphFound("traced again at once, with factors")
        elif walked.graph.signature != self.graph.signature:
            self._give_up(self.graph)
        elif factors.numel():
            if counts is not None:
                counts.hook(walked)
            self._multiply(walked, factors)
        return plain_gradients(entered, scale, trained)[0]

    def _with_parameters(self, walked: Walk, trained: Sequence[Tensor]) -> Walk:
        """The walk with the parameters as leaves: what a compiler traces in their place is none."""
        places: dict[object, int] = {node: place for place, node in enumerate(walked.nodes)}
        leaves = {
            places[traced.grad_fn]: parameter
            for traced, parameter in zip(trained, self._trained, strict=True)
            if traced.grad_fn in places
        }
        return Walk(walked.graph.with_leaves(leaves), walked.nodes)

    def _know(self, graph: BackwardGraph) -> None:
        self.graph = graph
        # What is unproven today may be seen to be linear tomorrow, without another compilation.
        still = graph.pinned.union(graph.leaves)
        self._edges = tuple(
            number
            for number, edge in enumerate(graph.edges)
            # An edge between two nodes that stay at the loss scale is never multiplied.
            if not {edge.source, edge.target} <= still
        )

    def _multiply(self, walked: Walk, factors: Tensor) -> None:
        by_source: dict[int, list[tuple[int, Tensor]]] = {}
        for place, number in enumerate(self._edges):
            edge = walked.graph.edges[number]
            by_source.setdefault(edge.source, []).append((edge.output, factors[place]))
        for source, outputs in by_source.items():
            walked.nodes[source].register_hook(_multiplying(outputs))

    def _give_up(self, graph: BackwardGraph) -> None:
        track = self._layerwise.tracks.of(graph)
        if track.frozen is None:
            track.freeze("its captured steps run through several graphs")
            warnings.warn(SEVERAL_GRAPHS, stacklevel=2)


def _in_graph(function: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """A function that dynamo puts into its graph as one call; later compilers trace through it."""

    def call(*arguments: Tensor) -> Gradients:
        return function(*arguments)

    allowed: Any = torch.compiler.allow_in_graph(call)
    return allowed


def _multiplying(
    outputs: Sequence[tuple[int, Tensor]],
) -> Callable[[Gradients, object], Gradients]:
    def hook(produced: Gradients, arrived: object) -> Gradients:
        del arrived
        scaled = list(produced)
        for output, by in outputs:
            grad = scaled[output]
            if grad is not None:
                scaled[output] = _product(each_once(grad), by).expand(grad.shape)
        return tuple(scaled)

    return hook


def _product(grad: Tensor, by: Tensor) -> Tensor:
    """In float32 at least and rounded once; spelled out, or a compiler rounds the factor first."""
    by = by.to(grad.device)
    if grad.is_complex():
        parts = torch.view_as_real(grad.resolve_conj())
        return torch.view_as_complex(parts * by.to(parts.dtype))
    wide = torch.promote_types(grad.dtype, torch.float32)
    return (grad.to(wide) * by.to(wide)).to(grad.dtype)
