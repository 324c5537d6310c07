"""The powers of two of a plan, on the device, in one tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from gradscale.backward.graph import BackwardGraph
from gradscale.backward.multiply import WORTH_ASKING
from gradscale.backward.new_gradients import is_new
from gradscale.backward.plan import ScalePlan
from gradscale.capturing import capturing


class Factor(NamedTuple):
    """By what a gradient is multiplied as it leaves a node.

    Attributes:
        output: which of the node's gradients.
        by: the power of two, shape `()`.
        plain: whether it may be multiplied without being asked: float32, which the engine sees to,
            and on its way to a leaf, which adds up element by element, whatever their layout.
        large: whether it was worth overwriting when its structure was first walked, and torch's
            own: a custom function may hand out what it keeps.
        new: whether its node has just made it, so that it may be overwritten without asking.
    """

    output: int
    by: Tensor
    plain: bool
    large: bool
    new: bool


class Multipliers:
    """One float32 factor for every hooked edge and every root; a new plan rewrites them in place.

    Make them once per plan and pass them to `rescale` on every step: the hooks read the tensor on
    the device, so a captured CUDA graph follows `set` without being captured again.

    Attributes:
        edges: the numbers of the edges that have a factor here; those inside compiled nodes have
            one in `of_spans`.
        plan: whose factors they hold.
        multiplied: how many edges are multiplied, those inside compiled nodes included.
        factors: for each device a tensor with a factor per edge and root there.

    Example:
        >>> from gradscale.backward import ScalePlan
        >>> w = torch.ones(3, requires_grad=True)
        >>> graph = BackwardGraph.of((w * 2).sum())
        >>> multipliers = Multipliers(graph, ScalePlan.of(graph, {1: 1}))
        >>> multipliers.edges, multipliers.factors[torch.device("cpu")]
        ((0, 1), tensor([1.0000, 2.0000, 0.5000]))
        >>> multipliers.set(ScalePlan.of(graph, {1: 2}))
        >>> multipliers.factors[torch.device("cpu")]
        tensor([1.0000, 4.0000, 0.2500])
    """

    def __init__(
        self, graph: BackwardGraph, plan: ScalePlan, edges: Sequence[int] | None = None
    ) -> None:
        """Prepares factors for the edges that `plan` cuts, or for a superset named by `edges`."""
        self._graph = graph.structure
        inner = self._graph.inner_edges
        chosen = plan.cuts(graph) if edges is None else edges
        self.edges = tuple(edge for edge in chosen if edge not in inner)
        self._spans = [
            torch.ones(len(s.targets), dtype=torch.float32, device=s.device)
            for s in graph.structure.spans
        ]
        self._places: dict[torch.device, list[int]] = {}
        for place, node in enumerate((*graph.roots, *(graph.edges[e].target for e in self.edges))):
            entry = 0 if place < len(graph.roots) else graph.edges[self._edge(place)].input
            self._places.setdefault(self._device(node, entry), []).append(place)
        self.factors = {
            device: torch.ones(len(places), dtype=torch.float32, device=device)
            for device, places in self._places.items()
        }
        self._by_place: dict[int, Tensor] = {}
        for device, places in self._places.items():
            self._by_place.update(zip(places, self.factors[device].unbind(), strict=True))
        self.set(plan)

    def set(self, plan: ScalePlan) -> None:
        """Writes another plan's factors, without a host sync.

        Raises:
            ValueError: that plan cuts an edge which has no factor here.
            RuntimeError: called while a CUDA graph is captured.
        """
        exponents = plan.exponents
        cuts = frozenset(plan.cuts_of(self._graph))
        self._refuse_missing(cuts)
        self._refuse_in_capture()
        values = [exponents[root] for root in self._graph.roots]
        for number in self.edges:
            edge = self._graph.edges[number]
            values.append(exponents[edge.target] - exponents[edge.source])
        for device, places in self._places.items():
            write_powers(self.factors[device], [values[place] for place in places])
        for factors, span in zip(self._spans, self._graph.spans, strict=True):
            write_powers(factors, span.steps(exponents))
        self.plan = plan
        self.multiplied = len(cuts.union(self.edges))
        self.root_exponents = tuple(values[: len(self._graph.roots)])

    def suit(self, graph: BackwardGraph, plan: ScalePlan) -> bool:
        """Whether `set(plan)` finds a place for each factor, and has none left over."""
        inner = self._graph.inner_edges
        return self.edges == tuple(edge for edge in plan.cuts(graph) if edge not in inner)

    def check(self, graph: BackwardGraph, plan: ScalePlan) -> None:
        """Raises if these are factors for another structure or another plan.

        Raises:
            ValueError: made for another structure, or last set for a plan that differs.
        """
        if graph.signature != self._graph.signature:
            raise ValueError(
                "`rescale(graph, plan, multipliers)`: the multipliers were made for another "
                "structure. Make them with `Multipliers(graph, plan)`."
            )
        if plan != self.plan:
            raise ValueError(
                "`rescale(graph, plan, multipliers)`: the multipliers hold another plan's factors. "
                "Call `multipliers.set(plan)` first."
            )

    @cached_property
    def of_sources(self) -> tuple[tuple[int, tuple[Factor, ...]], ...]:
        """For each node that a hooked edge leaves the factors of its outputs."""
        custom, leaves = frozenset(self._graph.custom), frozenset(self._graph.leaves)
        sources: dict[int, list[Factor]] = {}
        for place, number in enumerate(self.edges, len(self._graph.roots)):
            edge = self._graph.edges[number]
            arrival = self._graph.arrival(edge)
            factor = Factor(
                edge.output,
                self._by_place[place],
                arrival.dtype is torch.float32 and edge.target in leaves,
                edge.source not in custom and math.prod(arrival.shape) >= WORTH_ASKING,
                is_new(self._graph, edge),
            )
            sources.setdefault(edge.source, []).append(factor)
        # What is overwritten first: what is not makes a list, which would hold them all.
        return tuple(
            (source, tuple(sorted(factors, key=lambda factor: not (factor.new or factor.large))))
            for source, factors in sources.items()
        )

    def of_roots(self) -> tuple[Tensor, ...]:
        """For each root the factor that its incoming gradient needs, shape `()`."""
        return tuple(self._by_place[i] for i in range(len(self._graph.roots)))

    def of_spans(self) -> tuple[Tensor, ...]:
        """For each compiled node the factors of all its crossings, shape `(crossings,)`."""
        return tuple(self._spans)

    def _edge(self, place: int) -> int:
        return self.edges[place - len(self._graph.roots)]

    def _device(self, node: int, entry: int) -> torch.device:
        arrivals = self._graph.arrives[node]
        device = arrivals[entry].device if entry < len(arrivals) else None
        return device or torch.device("cpu")

    def _refuse_in_capture(self) -> None:
        if capturing() and any(device.type == "cuda" for device in self._places):
            raise RuntimeError(
                "`Multipliers.set(plan)` while a CUDA graph is captured: each replay would write "
                "what happens to lie in host memory by then. Run a step under this plan before "
                "the capture; afterwards `set` needs no new one."
            )

    def _refuse_missing(self, cuts: frozenset[int]) -> None:
        missing = cuts.difference(self.edges, self._graph.inner_edges)
        if missing:
            raise ValueError(
                f"`Multipliers.set(plan)`: the plan cuts edge {min(missing)}, for which there is "
                "no factor. Name it in `Multipliers(graph, plan, edges=…)`, or make new ones."
            )


def write_powers(factors: Tensor, exponents: Sequence[int]) -> None:
    """Overwrites factors, of shape `(n,)`, with these powers of two; the host waits for nothing."""
    new = torch.tensor([2.0**exponent for exponent in exponents], dtype=torch.float32, device="cpu")
    if factors.is_cuda:
        new = new.pin_memory()
    factors.copy_(new, non_blocking=True)
