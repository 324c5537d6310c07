"""What another scale would have lost: the recorded histograms, moved by whole octaves."""

from __future__ import annotations

import math

from gradscale.backward.measurements import Counts
from gradscale.formats import FloatFormat
from gradscale.plans.window import flush_octave, flushed_share, with_flushed
from gradscale.recording import Recording, Seen, Step


class LostShares:
    """The lost share of measured steps at any scale.

    At the recorded scale it is the recorded number. At another one the octaves of each row are
    moved, and those below the format counted; what the recorded scale had flushed already is first
    continued from the octaves that are left, except where it was counted before the rounding.

    Args:
        recording: of the run.
    """

    def __init__(self, recording: Recording) -> None:
        self._rows = {row.id: row for row in recording.rows}

    def at(self, step: Step, scale: float) -> float | None:
        """The share; None if the step was not measured, or has no histograms to move."""
        seen = step.seen
        if seen is None or step.skipped:
            return None
        octaves = round(math.log2(scale) - math.log2(step.scale))
        if octaves == 0:
            return seen.lost
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
            return 0.0, 0.0
        format = FloatFormat.of(self._rows[row].format)
        counts = Counts(
            amax=1.0,
            zero=seen.zero[place] + seen.flushed[place],
            lowest=histogram.lowest,
            octaves=histogram.counts,
        )
        exponent = seen.exponent[place]
        if seen.methods[place] != "counted":
            counts = with_flushed(counts, format, exponent)
        at = exponent + octaves
        if counts.lowest + at >= flush_octave(format):
            return 0.0, float(counts.nonzero)
        return flushed_share(counts, format, at) * counts.nonzero, float(counts.nonzero)
