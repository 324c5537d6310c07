"""Counts what passes each node of one backward pass; results stay on the device until asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from gradscale.backward.graph import Walk
from gradscale.backward.measure_fetched import Fetched
from gradscale.backward.measure_places import CountedPlace, moved, places_of
from gradscale.backward.measure_repeats import Repeats
from gradscale.backward.measure_sampled import Sampled
from gradscale.backward.measure_tally import Tally
from gradscale.backward.measure_waiting import Waiting, observed
from gradscale.backward.measure_weights import Weight, weights_of
from gradscale.backward.measurements import Counts, Measurements
from gradscale.untraced import untraced

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Hook = Callable[[Sequence[Tensor | None], Sequence[Tensor | None]], None]
Cleaned = Callable[[int, Tensor], Tensor]
See = Callable[[int, Tensor], None]


class _Way(NamedTuple):
    """How what passes a place is counted."""

    tally: Tally
    waiting: Waiting
    sampled: Sampled | None
    ceil: bool


def measure(
    walk: Walk,
    exponents: Sequence[int] | None = None,
    scale: float | Tensor = 1.0,
    *,
    products: bool = False,
    moments: bool = False,
    sampled: bool = False,
    places: Sequence[CountedPlace] | None = None,
    cleaned: Cleaned | None = None,
) -> Measuring:
    """Hooks the nodes of a live graph, so that its next backward passes are counted.

    Call it *before* `rescale`, because both hook what a node produces, in the order of the calls:
    a product is counted at its node's exponent, before an edge multiplies it.

    Args:
        walk: the graph and its live nodes.
        exponents: of the plan that the backward pass runs with, one for each node; None for zeros.
        scale: the loss scale, on the host or as a tensor of one element on the device.
        products: also count what arrives at matrix products in full precision.
        moments: that, and the sums that `Adaptive` needs, also of the saved weights.
        sampled: a part may stand for the whole of a large tensor (`measure_sample`).
        places: what to count instead of all that limits a plan; of what is in float32 or bfloat16
            the octaves are those that tell exactly what a cast flushes (`measure_rows`).
        cleaned: called with the index of a place and its tensor; what it returns is counted.

    Returns:
        A `Measuring`, to be asked for its result after the backward passes.

    Example:
        >>> from gradscale.backward.graph import walk
        >>> x = torch.tensor([3.0], dtype=torch.float16, requires_grad=True)
        >>> loss = (x * 2).float().sum()
        >>> measuring = measure(walk(loss), scale=8.0)
        >>> (loss * 8.0).backward()
        >>> records = measuring.result().records
        >>> [(record.kind, record.format, record.counts.amax) for record in records]
        [('arrived', 'fp32', 1.0), ('arrived', 'fp16', 1.0), ('produced', 'fp16', 2.0)]
    """
    graph = walk.graph
    chosen = list(exponents) if exponents is not None else [0] * len(graph)
    exact = places is not None
    if places is None:
        places = places_of(graph, chosen, products=products or moments)
    weights = weights_of(graph, walk.nodes) if moments else []
    measuring = Measuring(
        graph.signature, chosen, places, weights, scale, moments, sampled=sampled, exact=exact
    )
    if not exact:
        measuring.know_moved(moved(graph, chosen))
    measuring.attach(walk, cleaned)
    return measuring


class Measuring:
    """One measurement under way: rows on the devices, and what they mean.

    Small tensors are copied and counted together, some thousands at a time (`measure_waiting`);
    large ones at once or by a sample, if that will do (`measure_sample`), and only the first time
    where one passes several nodes unchanged.
    """

    def __init__(
        self,
        signature: str,
        exponents: Sequence[int],
        places: Sequence[CountedPlace],
        weights: Sequence[Weight],
        scale: float | Tensor,
        moments: bool,
        *,
        sampled: bool = False,
        exact: bool = False,
    ) -> None:
        self.signature = signature
        self.exponents = exponents
        self.places = [*places, *(weight.place for weight in weights)]
        self.fans = [0] * len(places) + [weight.fan for weight in weights]
        self.handles: list[RemovableHandle] = []
        self._moments = moments
        self._sampled = sampled and not exact and not moments
        self._repeats = Repeats()
        self._moved: Mapping[int, int] = {}
        # Whoever chose the places may ask which of them saw the same tensor, however small.
        self._noting_all = exact
        self._tallies: dict[torch.device, Tally] = {}
        self._known_ways: dict[tuple[torch.device, bool], _Way] = {}
        # Only formats with float32's range have lost nothing yet.
        unspoilt = ("fp32", "bf16") if exact else ()
        self._ways = [self._way(place.device, place.format in unspoilt) for place in self.places]
        self._scale = scale.detach().clone() if isinstance(scale, Tensor) else scale
        self._fetched: Fetched | None = None
        for index, weight in enumerate(weights, len(places)):
            self._see(index, weight.tensor)

    def _way(self, device: torch.device, ceil: bool) -> _Way:
        key = device, ceil
        if key not in self._known_ways:
            tally = self._tallies.setdefault(device, Tally(device, self._moments))
            sampled = Sampled(tally) if self._sampled else None
            self._known_ways[key] = _Way(tally, Waiting(tally, ceil=ceil), sampled, ceil)
        return self._known_ways[key]

    @property
    def repeats(self) -> dict[int, int]:
        """By index, the place at which the same tensor had been counted before."""
        return self._repeats.sources

    def know_moved(self, sources: Mapping[int, int]) -> None:
        """By node, where the elements that arrive there were counted already."""
        arrived = {p.node: i for i, p in enumerate(self.places) if p.kind == "arrived"}
        self._moved = {
            arrived[node]: arrived[source]
            for node, source in sources.items()
            if node in arrived and source in arrived
        }

    def attach(self, walk: Walk, cleaned: Cleaned | None = None) -> None:
        """Hooks the live nodes.

        A leaf is met before it accumulates: afterwards `.grad` may be the very tensor, and others'
        hooks (DDP's) may be changing it.
        """
        leaves = set(walk.graph.leaves)
        for node, hook in self.hooks(cleaned).items():
            live = walk.nodes[node]
            if node in leaves:
                self.handles.append(live.register_prehook(partial(hook, ())))
            else:
                self.handles.append(live.register_hook(hook))

    def hooks(self, cleaned: Cleaned | None = None) -> dict[int, Hook]:
        """For each node with places the hook that counts them; keeps no node alive."""
        by_node: dict[int, list[tuple[int, int]]] = {}
        for index, place in enumerate(self.places):
            if place.kind != "weight" and index not in self._moved:
                by_node.setdefault(place.node, []).append((index, place.output))
        see = self._see if cleaned is None else self._seeing(cleaned)
        return {node: partial(_show, see, wanted) for node, wanted in by_node.items()}

    def _seeing(self, cleaned: Cleaned) -> See:
        def see(index: int, tensor: Tensor) -> None:
            self._see(index, cleaned(index, tensor))

        return see

    def _see(self, index: int, tensor: Tensor) -> None:
        way = self._ways[index]
        if way.waiting.add(index, tensor):
            if self._noting_all:
                self._repeats.of(tensor, index)
            return
        if observed():
            with torch.no_grad(), _counting(tensor):
                self._count(index, tensor, way)
        else:
            self._count(index, tensor, way)

    def _count(self, index: int, tensor: Tensor, way: _Way) -> None:
        known = self._repeats.of(tensor, index)
        if known is not None and self._ways[known] == way:
            if way.sampled is None or not way.sampled.repeat(known, index):
                way.tally.add(known, index)
        elif way.sampled is None or not way.sampled.add(index, tensor):
            way.tally.count(index, tensor, ceil=way.ceil)

    def _settle(self) -> None:
        for way in self._known_ways.values():
            way.waiting.count()
            if way.sampled is not None:
                way.sampled.count()

    def reduce(self, groups: Iterable[ProcessGroup]) -> None:
        """Merges the counts of all ranks, in place on the device: maxima and sums."""
        self._settle()
        groups = list(groups)
        for device, tally in self._tallies.items():
            here = [index for index, place in enumerate(self.places) if place.device == device]
            tally.reduce(here, groups)

    def fetch(self) -> None:
        """Begins to copy the rows to the host, without waiting for them; hooks are removed."""
        self.remove()
        self._settle()
        parts = [part for tally in self._tallies.values() for part in tally.parts]
        self._fetched = Fetched(parts, self._scale)

    @property
    def ready(self) -> bool:
        """Whether `result` need not wait."""
        return self._fetched is not None and self._fetched.arrived

    def result(self) -> Measurements:
        """What was counted, in unscaled terms; waits for the copy if it is still under way."""
        if self._fetched is None:
            self.fetch()
        fetched = cast(Fetched, self._fetched)
        unseen = Counts(moments=(0.0, 0.0, 0.0, 0.0) if self._moments else None)
        records = fetched.records(self.places, self.fans, self.exponents, self._moved, unseen)
        return Measurements.of(self.signature, records)

    def remove(self) -> None:
        """Removes the hooks; those of a graph that is gone went with it."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()


@untraced
def _show(
    see: See,
    wanted: Sequence[tuple[int, int]],
    produced: Sequence[Tensor | None],
    arrived: Sequence[Tensor | None],
) -> None:
    for index, output in wanted:
        for tensor in arrived if output < 0 else (produced[output],):
            if tensor is not None:
                see(index, tensor)


def _counting(tensor: Tensor) -> AbstractContextManager[object]:
    """Keeps dispatch modes, such as `emulate`, out of the dozens of operations of one count.

    They are no part of the pass. A fake or distributed tensor is nothing without its dispatch.
    """
    return torch._C._DisableTorchDispatch() if type(tensor) is Tensor else nullcontext()
