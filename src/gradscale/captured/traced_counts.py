"""What a captured step counts on its way, as one of its results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradscale.backward.graph import BackwardGraph, Walk
from gradscale.backward.measure_counts import count_into, moments_into
from gradscale.backward.measure_fetched import Fetched
from gradscale.backward.measure_places import CountedPlace, places_of
from gradscale.backward.measure_rows import WIDTH, empty_counts, reduce_rows_
from gradscale.backward.measure_tally import MOMENTS, Part
from gradscale.backward.measure_weights import weights_of
from gradscale.backward.measurements import Measurements
from gradscale.plans.planner import Planner

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def count(tensors: list[Tensor], moments: bool) -> Tensor:
    """A row of what some tensors hold: counts, and the bits of the moments if they are asked for.

    One operator, so that a compiler has one to trace for each place, and runs the quick form.
    """
    row = _no_counts(moments, tensors[0].device)
    for tensor in tensors:
        count_into(row[:WIDTH], tensor)
        if moments:
            moments_into(row[WIDTH:].view(torch.float64), tensor)
    return row


def _no_counts(moments: bool, device: torch.device) -> Tensor:
    return empty_counts(1, device, WIDTH + (MOMENTS if moments else 0))[0]


def _count_fake(tensors: list[Tensor], moments: bool) -> Tensor:
    return _no_counts(moments, tensors[0].device)


_LIBRARY = torch.library.Library("gradscale", "FRAGMENT")
_LIBRARY.define("count(Tensor[] tensors, bool moments) -> Tensor")
_LIBRARY.impl("count", count, "CompositeExplicitAutograd")
torch.library.register_fake("gradscale::count", _count_fake)
COUNT: Callable[[list[Tensor], bool], Tensor] = torch.ops.gradscale.count.default


class TracedCounts:
    """Counts every place of a graph that some plan may want to know of, while a compiler traces.

    The rows are those of `gradscale.backward.measure`, with the planner's moments behind them.

    Args:
        planner: what is counted depends on it.

    Attributes:
        places: one for each row.
        fans: see `PlaceRecord`.
    """

    def __init__(self, planner: Planner) -> None:
        self._moments = planner.moments
        self._products = planner.products or planner.moments
        self.places: list[CountedPlace] = []
        self.fans: list[int] = []
        self._rows: dict[int, Tensor] = {}

    def hook(self, walked: Walk) -> None:
        """Counts what passes the nodes of a live graph, before a plan multiplies it."""
        graph = walked.graph
        # Ends that differ everywhere: a plan of any kind may come to cut any edge.
        self.places = places_of(graph, range(len(graph)), products=self._products)
        self.fans = [0] * len(self.places)
        by_node: dict[int, list[int]] = {}
        for row, place in enumerate(self.places):
            by_node.setdefault(place.node, []).append(row)
        for node, rows in by_node.items():
            walked.nodes[node].register_hook(self._counting(rows))
        for weight in weights_of(graph, walked.nodes) if self._moments else ():
            self._rows[len(self.places)] = self._counted([weight.tensor])
            self.places.append(weight.place)
            self.fans.append(weight.fan)

    def _counting(self, rows: Sequence[int]) -> Callable[..., None]:
        def count(produced: Sequence[Tensor | None], arrived: Sequence[Tensor | None]) -> None:
            for row in rows:
                output = self.places[row].output
                met = arrived if output < 0 else (produced[output],)
                tensors = [tensor for tensor in met if tensor is not None]
                if tensors:
                    self._rows[row] = self._counted(tensors)

        return count

    def _counted(self, tensors: list[Tensor]) -> Tensor:
        with torch.no_grad():
            return COUNT(tensors, self._moments)

    def packed(self, device: torch.device) -> Tensor:
        """All rows, int64, shape `(places, columns)`; of zeros where nothing passed."""
        none = _no_counts(self._moments, device)
        rows = [self._rows.get(row, none).to(device) for row in range(len(self.places))]
        return torch.stack(rows) if rows else none[None, :][:0]

    def wanted(self, graph: BackwardGraph, exponents: Sequence[int]) -> set[CountedPlace]:
        """The places that say something under this plan."""
        now = places_of(graph, exponents, products=self._products)
        return {*now, *(place for place in self.places if place.kind == "weight")}

    def without_tensors(self) -> TracedCounts:
        """What the rows mean, which outlives the trace."""
        # A traced tensor means nothing once its trace is over, and would keep all of it alive.
        kept = object.__new__(TracedCounts)
        kept.__dict__.update(self.__dict__, _rows={})
        return kept


class CountedPass:
    """What one pass of a captured step has counted, on its way to the host.

    Args:
        graph: of the pass.
        exponents: of the plan that it followed.
        scale: the loss scale, 0-d.
        counts: what the rows mean.
        rows: see `TracedCounts`.
    """

    def __init__(
        self,
        graph: BackwardGraph,
        exponents: tuple[int, ...],
        scale: Tensor,
        counts: TracedCounts,
        rows: Tensor,
    ) -> None:
        self.signature = graph.signature
        self._graph, self._exponents, self._scale = graph, exponents, scale
        # Collectives take memory as it lies: moments behind the counts must not be between them.
        self._counts, self._rows = counts, rows[:, :WIDTH].contiguous()
        sums = rows[:, WIDTH:].contiguous().view(torch.float64)
        self._sums = sums if sums.numel() else None
        self._fetched: Fetched | None = None

    def reduce(self, groups: Iterable[ProcessGroup]) -> None:
        """Merges the counts of all ranks, in place on the device: maxima and sums."""
        reduce_rows_(self._rows, groups, [] if self._sums is None else [self._sums])

    def fetch(self) -> None:
        """Begins to copy the rows to the host, without waiting for them."""
        self._begun()

    def _begun(self) -> Fetched:
        if self._fetched is None:
            numbers = list(range(len(self._counts.places)))
            part = Part(numbers, self._rows, moments=self._sums)
            self._fetched = Fetched([part], self._scale)
        return self._fetched

    def remove(self) -> None:
        """There are no hooks to remove."""

    def result(self) -> Measurements:
        """What was counted, in unscaled terms; waits for the copy if it is still under way."""
        places, fans = self._counts.places, self._counts.fans
        records = self._begun().records(places, fans, self._exponents)
        wanted = self._counts.wanted(self._graph, self._exponents)
        said = (it for place, it in zip(places, records, strict=True) if place in wanted)
        return Measurements.of(self.signature, said)
