"""The histograms that the page keeps: at a few steps spread over the run, of every row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gradscale.backward.measurements import Counts
from gradscale.formats import FloatFormat
from gradscale.plans.window import flush_octave, with_flushed
from gradscale.recording import Recording, Seen, Step
from gradscale.recording.schema import Octaves

# A thousand rows of some thirty octaves are 3 MB at so many steps, before they are compressed.
LIMIT = 24


class Histogram(NamedTuple):
    """The magnitudes of one row at one step, and how it was stored.

    Attributes:
        step: when it was measured.
        log2_scale: of the loss scale at that step; NaN without a scaler.
        octaves: counts of the unscaled magnitudes.
        exponent: it was stored at ``2**exponent`` times its true values.
        unseen: elements lost before anybody could count them, and in none of the octaves.
        zero: elements that are truly zero.
        amax: log2 of the largest magnitude; -inf where all are zero.
        guessed: so many of the lowest octaves are estimates: they hold elements that were lost
            before anybody could count them, as the histogram continues downwards.
    """

    step: int
    log2_scale: float
    octaves: Octaves
    exponent: int
    unseen: int
    zero: int
    amax: float
    guessed: int = 0

    @property
    def offset(self) -> int:
        """The exponent beyond that of the loss scale: what a plan, or a wider format, made it."""
        return self.exponent - rounded_up(self.log2_scale)


@dataclass
class HistogramSnapshot:
    """The latest histogram of each row that was measured since the snapshot before.

    Attributes:
        step: the step itself.
        log2_scale: of the loss scale at that step; NaN without a scaler.
        rows: histograms by row id.
    """

    step: int
    log2_scale: float
    rows: dict[int, Histogram] = field(default_factory=dict[int, Histogram])


def snapshots_of(recording: Recording, limit: int = LIMIT) -> list[HistogramSnapshot]:
    """At most `limit` snapshots, evenly spread over the steps that have histograms.

    The last of those steps is always one. A row that was not measured at a snapshot's own step is
    in it with the latest histogram since the snapshot before.
    """
    measured = [step for step in recording.steps if step.octaves]
    kept = evenly(len(measured), limit)
    found: list[HistogramSnapshot] = []
    formats = [row.format for row in recording.rows]
    pending: dict[int, Histogram] = {}
    for index, step in enumerate(measured):
        pending |= _histograms(step, formats)
        if index in kept:
            found.append(HistogramSnapshot(step.step, log2(step.scale), pending))
            pending = {}
    return found


def latest(snapshots: Iterable[HistogramSnapshot]) -> dict[int, Histogram]:
    """Of each row the last histogram that there is."""
    found: dict[int, Histogram] = {}
    for snapshot in snapshots:
        found |= snapshot.rows
    return found


def evenly(count: int, most: int) -> list[int]:
    """Up to `most` of the numbers below `count`, both ends among them.

    Example:
        >>> evenly(3, 4), evenly(10, 4)
        ([0, 1, 2], [0, 3, 6, 9])
    """
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def _histograms(step: Step, formats: Sequence[str]) -> dict[int, Histogram]:
    places = _places(step.seen)
    return {
        row: continued(_histogram(step, octaves, step.seen, places.get(row)), formats[row])
        for row, octaves in step.octaves.items()
    }


def _places(seen: Seen | None) -> Mapping[int, int]:
    return {} if seen is None else {row: place for place, row in enumerate(seen.id)}


def _histogram(step: Step, octaves: Octaves, seen: Seen | None, place: int | None) -> Histogram:
    scale = log2(step.scale)
    if seen is None or place is None:
        # Nobody said how it was stored: at the loss scale, as gradients are without a plan.
        top = octaves.lowest + len(octaves.counts) if octaves.counts else -math.inf
        return Histogram(step.step, scale, octaves, rounded_up(scale), 0, 0, top)
    amax = seen.amax[place]
    return Histogram(
        step.step,
        scale,
        octaves,
        seen.exponent[place],
        max(0, seen.nonzero[place] - sum(octaves.counts)),
        seen.zero[place],
        -math.inf if amax is None else amax,
    )


def continued(histogram: Histogram, format: str) -> Histogram:
    """The histogram with the unseen elements where `with_flushed` expects them.

    What does not fit into its estimate stays unseen.

    Args:
        histogram: of a tensor that may have lost some.
        format: the name of what it was stored in.

    Example:
        >>> seen = Histogram(0, 0.0, Octaves(-24, (40, 60, 80)), 0, 30, 0, -21.5)
        >>> continued(seen, "fp16").octaves
        Octaves(lowest=-27, counts=(5, 25, 0, 40, 60, 80))
    """
    try:
        stored = FloatFormat.of(format)
    except ValueError:
        return histogram
    lowest, counts = histogram.octaves
    # Only where the octaves begin at the format's end have any been cut off there.
    if not histogram.unseen or flush_octave(stored) + 1 - histogram.exponent != lowest:
        return histogram
    seen = Counts(2.0, zero=histogram.unseen, lowest=lowest, octaves=counts)
    whole = with_flushed(seen, stored, histogram.exponent)
    return histogram._replace(
        octaves=Octaves(whole.lowest, whole.octaves),
        unseen=whole.zero,
        guessed=lowest - whole.lowest,
    )


def log2(value: float) -> float:
    """log2 of a scale or a loss; NaN for what has none.

    Example:
        >>> log2(8.0), log2(0.0), log2(float("inf"))
        (3.0, nan, nan)
    """
    return math.log2(value) if value > 0 and math.isfinite(value) else math.nan


def rounded_up(log2_scale: float) -> int:
    """The exponent of a loss scale: rounded up, and 0 where there is none.

    Example:
        >>> rounded_up(16.0), rounded_up(15.5), rounded_up(math.nan)
        (16, 16, 0)
    """
    return math.ceil(log2_scale) if math.isfinite(log2_scale) else 0
