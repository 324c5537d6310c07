"""What would have overflowed at another scale: the largest gradient behind each recorded step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradscale.formats import FloatFormat
from gradscale.recording import Recording, Seen, Step


class Peaks:
    """The smallest scale at which each step would have overflowed, as far as the recording tells.

    The largest gradient of a backward pass, not that of the parameters, decides what overflows. It
    is known on steps that measured, and taken from them on the others:

        measured:    the largest over the rows, each at its own place in the plan
        in between:  the parameters' amax, times what the rows had above it when last measured
        no watch:    the parameters' amax alone
        overflowed:  just above what a format holds at the lowest scale that still overflowed

    Args:
        recording: of the run.
    """

    def __init__(self, recording: Recording) -> None:
        self._threshold = _threshold(recording.header.format)
        self._flushed = FloatFormat.of(recording.header.format).flush_threshold
        self._steps = recording.steps
        self._formats = {row.id: _threshold(row.format) for row in recording.rows}
        self._gradients = {row.id for row in recording.rows if row.kind != "activation"}
        self._limits = self._estimate()

    def limit(self, index: int) -> float | None:
        """The scale from which on the `index`-th step overflows; None if nothing tells."""
        return self._limits[index]

    def _estimate(self) -> list[float | None]:
        limits: list[float | None] = []
        ratio = 1.0  # of the limit that the rows show to the one that amax shows
        for step in self._steps:
            by_amax = self._by_amax(step)
            measured = None if step.seen is None else self._measured(step, step.seen)
            # An infinite largest gradient has a limit of 0, to which nothing has a ratio.
            if measured is not None and by_amax and not step.skipped:
                ratio = measured / by_amax
            if measured is None and by_amax is not None:
                measured = by_amax * ratio
            limits.append(measured)
        # Last: what was seen to overflow is stronger than any estimate.
        self._bound_overflows(limits)
        return limits

    def _by_amax(self, step: Step) -> float | None:
        if step.amax is None or not step.scale > 0:  # torch's scale can collapse to zero
            return None
        # Where all are zero, the largest may have been flushed just so.
        return self._threshold / max(step.amax, self._flushed / step.scale)

    def _measured(self, step: Step, seen: Seen) -> float | None:
        found: list[float] = []
        if not step.scale > 0:
            return None
        # The smallest over rows: where one overflows, the step does.
        for row, amax, exponent in zip(seen.id, seen.amax, seen.exponent, strict=True):
            if amax is not None and row in self._gradients:
                # At the scale S the row is stored at 2**(exponent) = S * 2**k.
                octaves = amax + exponent - math.log2(step.scale)
                # Within what a float holds: a recording may say anything.
                found.append(self._formats[row] / 2.0 ** min(max(octaves, -1000.0), 1000.0))
        return min(found) if found else None

    def _bound_overflows(self, limits: list[float | None]) -> None:
        """An overflow at S, and at S/2 after it: the limit is at most S/2."""
        lowest = math.inf
        # Backwards: what a later overflow in the same row of them proves holds for the ones before.
        for index in range(len(limits) - 1, -1, -1):
            step = self._steps[index]
            if step.overflow:
                lowest = min(lowest, step.scale)
                limits[index] = lowest
            elif not step.skipped:
                lowest = math.inf


def shown_amax(steps: Sequence[Step]) -> list[float | None]:
    """The parameters' amax of every step; of one that overflowed, that of the step before.

    What was finite in an overflowing step says nothing of its size.
    """
    shown: list[float | None] = []
    latest: float | None = None
    for step in steps:
        if step.amax is not None and not (step.skipped and latest is not None):
            latest = step.amax
        shown.append(latest if step.amax is not None else None)
    return shown


def _threshold(name: str) -> float:
    format = FloatFormat.of(name)
    # What saturates never overflows by itself; half precision around it does.
    return (FloatFormat.of("fp16") if format.overflow == "saturate" else format).overflow_threshold
