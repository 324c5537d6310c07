"""The rows of a measurement on their way to the host, and what they say there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradscale.backward.measure_tally import Part
from gradscale.backward.measurements import Counts, unscaled_counts
from gradscale.host_copies import HostCopies


class Fetched:
    """Rows that were counted, copied without waiting for them.

    Args:
        parts: the rows of all devices.
        scale: the loss scale, on the host or as a tensor of one element on the device.
    """

    def __init__(self, parts: Sequence[Part], scale: float | Tensor) -> None:
        self._parts = parts
        known = scale if isinstance(scale, Tensor) else torch.tensor(scale, dtype=torch.float64)
        used = [part.rows[: len(part.places)] for part in parts]
        sums = [p.moments[: len(p.places)] for p in parts if p.moments is not None]
        self._copies = HostCopies([known, *used, *sums])

    @property
    def arrived(self) -> bool:
        """Whether all of it is on the host."""
        return self._copies.arrived

    def wait(self) -> None:
        """Waits until it is."""
        self._copies.wait()

    @property
    def scale(self) -> float:
        """The loss scale, once it has arrived."""
        return float(self._copies.tensors[0])

    def counts(self, scales: Sequence[tuple[float, int]]) -> dict[int, Counts]:
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
