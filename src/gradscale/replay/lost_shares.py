"""What another scale would have lost: the recorded histograms, moved by whole octaves."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradscale.formats import FloatFormat
from gradscale.plans.window import flush_octave
from gradscale.recording import Recording, Seen, Step


class LostShares:
    """The lost share of measured steps at any scale.

    At the recorded scale it is the recorded number. At another one the octaves of each row are
    moved, and those below the format counted. Of what the recorded scale had flushed itself, the
    number is recorded; how deep it lies is estimated, except where the octaves were counted before
    the rounding and show it.

    Args:
        recording: of the run.
    """

    def __init__(self, recording: Recording) -> None:
        self._rows = {row.id: row for row in recording.rows}

    def at(self, step: Step, scale: float) -> float | None:
        """The share; None if the step was not measured, or has no histograms to move."""
        seen = step.seen
        if seen is None or step.skipped or not (scale > 0 and step.scale > 0):
            return None
        # Whole octaves, as histograms are: scales are powers of two, but for a user's own factors.
        octaves = round(math.log2(scale) - math.log2(step.scale))
        if octaves == 0:
            return seen.lost_share
        if not step.octaves:
            return None
        flushed = nonzero = 0.0
        for place, row in enumerate(seen.id):
            if self._rows[row].kind == "activation" or row in seen.negligible:
                continue
            lost, whole = self._row(step, seen, place, octaves)
            flushed, nonzero = flushed + lost, nonzero + whole
        return flushed / nonzero if nonzero else None

    def _row(self, step: Step, seen: Seen, place: int, octaves: int) -> tuple[float, float]:
        row = seen.id[place]
        histogram = step.octaves.get(row)
        if histogram is None:
            return float(seen.flushed[place]), float(seen.nonzero[place])
        format, exponent = FloatFormat.of(self._rows[row].format), seen.exponent[place]
        spread = list(map(float, histogram.counts))
        # Counted before the rounding: its octaves show what lies below the format.
        if seen.methods[place] == "counted":
            lost = _below(spread, histogram.lowest, format, exponent + octaves)
        else:
            unseen = max(0.0, seen.nonzero[place] - sum(spread))
            at_end = flush_octave(format) + 1 - exponent - histogram.lowest
            ratio = _ratio(unseen, spread, at_end)
            lost = unseen if octaves <= 0 else unseen * ratio**octaves
            lowest = histogram.lowest - 1
            unrounded = _unrounded(spread, at_end, ratio)
            lost += _below(unrounded, lowest, format, exponent + octaves)
        return lost, float(seen.nonzero[place])


def _below(counts: Sequence[float], lowest: int, format: FloatFormat, exponent: int) -> float:
    """How many elements lie in octaves that the format flushes."""
    return sum(counts[: max(0, flush_octave(format) - exponent - lowest)])


def _ratio(unseen: float, counts: Sequence[float], at_end: int) -> float:
    """How the octaves fall off below the format, so that they hold what is known to be there.

    How many elements nobody saw is recorded; where they lie is not. They are taken to continue the
    lowest octave that rounding left whole, ``low``, as a series: ``low * (r**3 + r**4 + …)``,
    because it touched the two octaves between.

    Args:
        unseen: how many.
        counts: the octaves.
        at_end: the place of the octave in which the format ends.
    """
    low = counts[at_end + 1] if 0 <= at_end + 1 < len(counts) else 0.0
    if not low or not unseen:
        return 0.0
    # By bisection, for `_tail` grows with the ratio; 40 halvings leave less than 1e-12.
    least, most = 0.0, 1.0
    for _ in range(40):
        middle = (least + most) / 2
        least, most = (least, middle) if _tail(middle) * low > unseen else (middle, most)
    return least


def _tail(ratio: float) -> float:
    return ratio**3 / (1 - ratio)


def _unrounded(counts: Sequence[float], at_end: int, ratio: float) -> list[float]:
    """The octaves before the format rounded, one more at the bottom.

    Into the octave in which the format ends came what lay below it, and from it went what lay above
    one and a half times the smallest number.
    """
    spread = [0.0, *counts]
    here = at_end + 1
    if not (0 < here < len(spread)) or not ratio:
        return spread
    # Elements spread evenly in their logarithm: so many of an octave lie below 1.5 times its start,
    # where rounding to a single bit goes down.
    share = math.log2(1.5)
    below = spread[here] / (1 + share / ratio)
    whole = (spread[here] - below) / share
    moved = whole - (spread[here] - below)
    spread[here - 1], spread[here] = spread[here - 1] + below, whole
    if here + 1 < len(spread):
        spread[here + 1] = max(0.0, spread[here + 1] - moved)
    return spread
