"""The rows of a measurement on their way to the host, and what they say there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gradscale.backward.measure_places import CountedPlace
from gradscale.backward.measure_tally import Part
from gradscale.backward.measurements import Counts, PlaceRecord, unscaled_counts
from gradscale.exponents import ceil_exponent
from gradscale.host_copies import HostCopies

_NOWHERE: Mapping[int, int] = {}
_NOTHING = Counts()


class Fetched:
    """Rows that were counted, copied without waiting for them.

    Args:
        parts: the rows of all devices.
        scale: the loss scale, on the host or as a tensor of one element on the device.
    """

    def __init__(self, parts: Sequence[Part], scale: float | Tensor) -> None:
        self._parts = parts
        # A number as it is: float64 holds what Python's floats hold.
        known = scale if isinstance(scale, Tensor) else torch.tensor(scale, dtype=torch.float64)
        used = [part.rows[: len(part.places)] for part in parts]
        sums = [p.moments[: len(p.places)] for p in parts if p.moments is not None]
        self._copies = HostCopies([known, *used, *sums])

    @property
    def arrived(self) -> bool:
        """Whether all of it is on the host."""
        return self._copies.arrived

    def records(
        self,
        places: Sequence[CountedPlace],
        fans: Sequence[int],
        exponents: Sequence[int],
        moved: Mapping[int, int] = _NOWHERE,
        unseen: Counts = _NOTHING,
    ) -> list[PlaceRecord]:
        """What was counted, in unscaled terms; waits for the copy if it is still under way.

        Args:
            places: what the rows are of, by number.
            fans: for each place, see `PlaceRecord`.
            exponents: of the plan, for each node.
            moved: the numbers of places that were counted at others, and of those.
            unseen: what a place holds that nobody met.
        """
        self._copies.wait()
        scale = float(self._copies.tensors[0])
        stored = [
            (1.0, 0) if place.kind == "weight" else (scale, exponents[place.node])
            for place in places
        ]
        counts = self._counts(stored)
        octave = {factor: ceil_exponent(factor) for factor in (1.0, scale)}
        return [
            PlaceRecord(
                place.node, place.kind, place.target, place.format, octave[factor] + exponent,
                counts.get(moved.get(number, number), unseen), fan,
            )
            for number, (place, (factor, exponent), fan) in enumerate(
                zip(places, stored, fans, strict=True)
            )
        ]  # fmt: skip

    def _counts(self, scales: Sequence[tuple[float, int]]) -> dict[int, Counts]:
        """By place what was counted there, in unscaled terms; nothing of a place that nobody met.

        Args:
            scales: for each place the loss scale and the exponent relative to it.
        """
        found: dict[int, Counts] = {}
        rest = iter(self._copies.tensors[1:])
        copied = [(part, next(rest)) for part in self._parts]
        for part, rows in copied:
            moments = None if part.moments is None else next(rest)
            stored = [scales[place] for place in part.places]
            counts = unscaled_counts(rows, stored, moments, lowest=part.lowest)
            for place, count in zip(part.places, counts, strict=True):
                known = found.get(place)
                found[place] = count if known is None else known + count
        return found
