"""One backward pass that is measured: hooked before it runs, told apart by rows afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradscale.backward.graph import Walk
from gradscale.backward.measure import measure
from gradscale.watching.flags import Flags
from gradscale.watching.negligible import Recognizing
from gradscale.watching.plan_in_force import PlanInForce
from gradscale.watching.sights import Order, Sight, StoredAs
from gradscale.watching.spots import RowSpot

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class MeasuredPass:
    """The counts of one pass on the device.

    Hooks are attached here, before those of a layer-wise plan, which come as the pass begins: what
    a node produces is met as it was made, and what arrives at the exponent of its node.

    Args:
        walked: the pass's graph and live nodes; not kept.
        spots: what to count.
        scale: the loss scale.
        plan: of a layer-wise scaler, or None.
        recognizing: tells which gradients are zero up to rounding.
        number: the place of this pass among those of its step, for the order of what is found.
        ended: what else has to be done then.
    """

    def __init__(
        self,
        walked: Walk,
        spots: Sequence[RowSpot],
        scale: float | Tensor,
        plan: PlanInForce | None,
        recognizing: Recognizing,
        number: Order,
        ended: Callable[[], object] | None = None,
    ) -> None:
        self._spots = spots
        self._recognizing = recognizing
        self._flags = Flags()
        self._plan = plan
        self._number = number
        self._ended = ended
        self._nodes = len(walked.graph)
        places = [spot.place for spot in spots]
        self.measuring = measure(walked, scale=scale, places=places, cleaned=self._cleaned)
        reentrant = walked.graph.structure.reentrant
        self._inner: dict[object, int] = {walked.nodes[node]: node for node in reentrant}

    def end(self) -> None:
        """The pass has ended: the hooks go, and a plan's exponents are taken down."""
        # Nodes are let go of with it, or they would keep the graph and its activations alive.
        self.measuring.remove()
        self._recognizing.end()
        if self._ended is not None:
            self._ended()
        self._inner = {}
        if self._plan is not None:
            self.measuring.exponents = self._plan.exponents(self._nodes)
            self._plan = None

    def _cleaned(self, index: int, tensor: Tensor) -> Tensor:
        spot = self._spots[index]
        # Sums are known of parameters only; a subclass or a sparse gradient has no plain `where`.
        if spot.kind != "parameter" or type(tensor) is not Tensor or tensor.layout != torch.strided:
            return tensor
        with torch.no_grad():
            kept, negligible = self._recognizing.cleaned(spot.name, tensor)
        if negligible is not None:
            self._flags.add(index, negligible)
        return kept

    def reduce(self, groups: Sequence[ProcessGroup]) -> None:
        """Adds up the counts of all ranks, in place on the device."""
        self.measuring.reduce(groups)
        self._flags.reduce(groups)

    def fetch(self) -> None:
        """The counts start on their way to the host."""
        self._flags.fetch()
        self.measuring.fetch()

    @property
    def arrived(self) -> bool:
        """Whether they have arrived."""
        return self.measuring.ready and self._flags.arrived

    def number_inside(self, node: object) -> Order:
        """The number of a pass that runs inside a node of this one, as a reentrant checkpoint."""
        return (*self._number, self._inner.get(node, self._nodes))

    def signature(self) -> tuple[object, ...]:
        """What must be equal on ranks that add up their counts."""
        names = tuple(spot.name for spot in self._spots)
        return self._number, tuple(self.measuring.exponents), names, self._flags.signature

    def sights(self) -> Iterator[Sight]:
        """What was seen, by row; waits for the counts to arrive."""
        records = {record.node: record for record in self.measuring.result().records}
        negligible = self._flags.raised()
        for index, spot in enumerate(self._spots):
            record = records[spot.place.node]
            if record.counts.numel and not self._seen_already(index):
                # A plan moves a gradient after it was rounded: what counts is where it was before.
                stored = record.exponent - self._rise(spot)
                part = StoredAs(spot.place.format, spot.rounded, stored)
                order = (*self._number, spot.place.node)
                broken = order if record.counts.nonfinite else None
                counts = {part: record.counts}
                yield Sight(spot.name, spot.kind, order, counts, broken, index in negligible)

    def _rise(self, spot: RowSpot) -> int:
        """Octaves by which a plan has moved what arrived up since it was made, and rounded."""
        exponents = self.measuring.exponents
        here = exponents[spot.place.node]
        return here - min([here, *(exponents[source] for source in spot.sources)])

    def _seen_already(self, index: int) -> bool:
        """Whether the very tensor counts in this row already: it passed a sum or a view."""
        source = self.measuring.repeats.get(index)
        if source is None:
            return False
        one, other = self._spots[source], self._spots[index]
        return (one.kind, one.name) == (other.kind, other.name)
