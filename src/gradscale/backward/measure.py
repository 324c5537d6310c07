"""Counts what passes each node of one backward pass; results stay on the device until asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from gradscale.backward.graph import Walk
from gradscale.backward.measure_counts import (
    AMAX,
    WIDTH,
    count_into,
    empty_counts,
    moments_into,
)
from gradscale.backward.measure_places import CountedPlace, places_of
from gradscale.backward.measure_repeats import Repeats
from gradscale.backward.measure_weights import Weight, weights_of
from gradscale.backward.measurements import Measurements, PlaceRecord, unscaled_counts
from gradscale.exponents import ceil_exponent
from gradscale.host_copies import HostCopies
from gradscale.ranks import reduce_max_, reduce_sum_
from gradscale.untraced import untraced

_MOMENTS = 4
Hook = Callable[[Sequence[Tensor | None], Sequence[Tensor | None]], None]
Cleaned = Callable[[int, Tensor], Tensor]


def measure(
    walk: Walk,
    exponents: Sequence[int] | None = None,
    scale: float | Tensor = 1.0,
    *,
    products: bool = False,
    moments: bool = False,
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
        places: what to count instead of all that limits a plan; of what is in float32 or bfloat16
            the octaves are those that tell exactly what a cast flushes (`measure_counts`).
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
    measuring = Measuring(graph.signature, chosen, places, weights, scale, moments, exact=exact)
    measuring.attach(walk, cleaned)
    return measuring


class Measuring:
    """One measurement under way: rows on the device, one for each place, and what they mean."""

    def __init__(
        self,
        signature: str,
        exponents: Sequence[int],
        places: Sequence[CountedPlace],
        weights: Sequence[Weight],
        scale: float | Tensor,
        moments: bool,
        *,
        exact: bool = False,
    ) -> None:
        self.signature = signature
        self.exponents = exponents
        self.places = [*places, *(weight.place for weight in weights)]
        self.fans = [0] * len(places) + [weight.fan for weight in weights]
        self.handles: list[Any] = []
        self._blocks = _Blocks(self.places, moments)
        # Only formats with float32's range have lost nothing yet.
        self._ceil = [exact and place.format in ("fp32", "bf16") for place in self.places]
        self._repeats = Repeats()
        self._scale = scale.detach().clone() if isinstance(scale, Tensor) else scale
        self._host: HostCopies[Tensor] | None = None
        for index, weight in enumerate(weights, len(places)):
            self._count(index, weight.tensor)

    @property
    def repeats(self) -> dict[int, int]:
        """By index, the place at which the same tensor had been counted before."""
        return self._repeats.sources

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
            if place.kind != "weight":
                by_node.setdefault(place.node, []).append((index, place.output))
        return {node: self._hook(wanted, cleaned) for node, wanted in by_node.items()}

    def _hook(
        self,
        wanted: Sequence[tuple[int, int]],
        cleaned: Cleaned | None,
    ) -> Hook:
        @untraced
        def count(produced: Sequence[Tensor | None], arrived: Sequence[Tensor | None]) -> None:
            for index, output in wanted:
                for tensor in arrived if output < 0 else (produced[output],):
                    if tensor is not None:
                        self._count(index, cleaned(index, tensor) if cleaned else tensor)

        return count

    def _count(self, index: int, tensor: Tensor) -> None:
        block, row = self._blocks.where[index]
        with torch.no_grad(), _counting(tensor):
            known = self._repeats.of(tensor, index)
            if known is not None and self._alike(known, index):
                block.copy(self._blocks.where[known][1], row)
                return
            count_into(block.rows[row], tensor, ceil=self._ceil[index])
            if block.moments is not None:
                moments_into(block.moments[row], tensor)

    def _alike(self, one: int, other: int) -> bool:
        same = self._blocks.where[one][0] is self._blocks.where[other][0]
        return same and self._ceil[one] == self._ceil[other]

    def reduce(self, groups: Iterable[Any]) -> None:
        """Merges the counts of all ranks, in place on the device: maxima and sums."""
        groups = list(groups)
        for block in self._blocks.all:
            amax = block.rows[:, AMAX].clone()
            reduce_max_([amax], groups)
            sums = [block.rows] if block.moments is None else [block.rows, block.moments]
            reduce_sum_(sums, groups)
            block.rows[:, AMAX] = amax

    def fetch(self) -> None:
        """Begins to copy the rows to the host, without waiting for them; hooks are removed."""
        self.remove()
        self._host = HostCopies([_packed(block, self._scale) for block in self._blocks.all])

    @property
    def ready(self) -> bool:
        """Whether `result` need not wait."""
        return self._host is not None and self._host.arrived

    def result(self) -> Measurements:
        """What was counted, in unscaled terms; waits for the copy if it is still under way."""
        if self._host is None:
            self.fetch()
        host = cast(HostCopies[Tensor], self._host)
        host.wait()
        records: dict[int, PlaceRecord] = {}
        for block, packed in zip(self._blocks.all, host.tensors, strict=True):
            rows, moments, scale = _unpacked(packed, block)
            scales = [self._scale_of(place, scale) for place in block.places]
            counts = unscaled_counts(rows, scales, moments)
            for index, place, (factor, exponent), count in zip(
                block.indices, block.places, scales, counts, strict=True
            ):
                stored = ceil_exponent(factor) + exponent
                records[index] = PlaceRecord(
                    place.node, place.kind, place.target, place.format, stored, count,
                    self.fans[index],
                )  # fmt: skip
        merged = Measurements(self.signature).merged(
            Measurements(self.signature, (records[index],)) for index in sorted(records)
        )
        return merged

    def _scale_of(self, place: CountedPlace, scale: float) -> tuple[float, int]:
        return (1.0, 0) if place.kind == "weight" else (scale, self.exponents[place.node])

    def remove(self) -> None:
        """Removes the hooks; those of a graph that is gone went with it."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()


def _counting(tensor: Tensor) -> AbstractContextManager[object]:
    """Keeps dispatch modes, such as `emulate`, out of the dozens of operations of one count.

    They are no part of the pass. A fake or distributed tensor is nothing without its dispatch.
    """
    return torch._C._DisableTorchDispatch() if type(tensor) is Tensor else nullcontext()


class _Block:
    """The rows on one device."""

    def __init__(self, device: torch.device, moments: bool) -> None:
        self.device = device
        self.indices: list[int] = []
        self.places: list[CountedPlace] = []
        self.rows = empty_counts(0)
        self.moments: Tensor | None = None
        self._with_moments = moments

    def allocate(self) -> None:
        size = len(self.indices)
        self.rows = empty_counts(size, self.device)
        if self._with_moments:
            self.moments = torch.zeros(size, _MOMENTS, dtype=torch.float64, device=self.device)

    def copy(self, source: int, target: int) -> None:
        self.rows[target] = self.rows[source]
        if self.moments is not None:
            self.moments[target] = self.moments[source]


class _Blocks:
    """All rows, and where each place has its own."""

    def __init__(self, places: Sequence[CountedPlace], moments: bool) -> None:
        by_device: dict[torch.device, _Block] = {}
        self.where: list[tuple[_Block, int]] = []
        for index, place in enumerate(places):
            block = by_device.setdefault(place.device, _Block(place.device, moments))
            self.where.append((block, len(block.indices)))
            block.indices.append(index)
            block.places.append(place)
        self.all = list(by_device.values())
        for block in self.all:
            block.allocate()


def _packed(block: _Block, scale: float | Tensor) -> Tensor:
    """Counts, moments and the scale as one flat int64 tensor, so that one copy takes them all."""
    if not isinstance(scale, Tensor):
        scale = torch.full((), scale, dtype=torch.float64, device=block.device)
    scale = scale.to(block.device, torch.float64).reshape(1)
    parts = [block.rows.reshape(-1), scale.view(torch.int64)]
    if block.moments is not None:
        parts.append(block.moments.reshape(-1).view(torch.int64))
    return torch.cat(parts)


def _unpacked(host: Tensor, block: _Block) -> tuple[Tensor, Tensor | None, float]:
    size = len(block.indices)
    rows = host[: size * WIDTH].reshape(size, WIDTH)
    scale = host[size * WIDTH : size * WIDTH + 1].view(torch.float64).item()
    if block.moments is None:
        return rows, None, scale
    return rows, host[size * WIDTH + 1 :].view(torch.float64).reshape(size, _MOMENTS), scale
