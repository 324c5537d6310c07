"""What a histogram says of a format at another exponent; the page counts by the same rules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gradscale.report.histograms import Histogram
from gradscale.report.ranges import FormatRange

REACH = 30
"""How many octaves around the recorded scale are tried: as float16's normal numbers span."""

SPARE = 4
"""Octaves that a proposed scale keeps free above the largest gradient, as a plan's windows do."""


class Fate(NamedTuple):
    """What becomes of the elements of a row at one exponent.

    Attributes:
        nonzero: how many are truly not zero.
        lost: rounded to zero, those included that were lost before they could be counted.
        subnormal: kept with less than full precision.
        overflowed: beyond the format for sure; what lies in its topmost octave is not counted.
        touches: whether the largest one overflows, though it may lie in the topmost octave.
        unseen: of `lost`: nobody knows how small they were, so a higher scale may save them.
        guessed: of `nonzero`: their sizes are estimated.
    """

    nonzero: int = 0
    lost: int = 0
    subnormal: int = 0
    overflowed: int = 0
    touches: bool = False
    unseen: int = 0
    guessed: int = 0

    @property
    def share(self) -> float:
        """Lost elements as a share of the non-zero ones."""
        return self.lost / max(1, self.nonzero)


def fate(histogram: Histogram, span: FormatRange, exponent: int) -> Fate:
    """What becomes of a row's elements when it is stored at ``2**exponent`` times its values.

        lost        octave + exponent < flush
        subnormal   flush <= octave + exponent < normal
        overflowed  octave + exponent > top

    Args:
        histogram: of the unscaled magnitudes.
        span: the format's, from `range_of`.
        exponent: where it would be stored.

    Example:
        >>> from gradscale.recording.schema import Octaves
        >>> from gradscale.report.ranges import ranges_of
        >>> seen = Histogram(0, 0.0, Octaves(-30, (4, *[0] * 29, 6)), 0, 0, 0, 0.5)
        >>> fate(seen, ranges_of(set())["fp16"], 0)
        Fate(nonzero=10, lost=4, subnormal=0, overflowed=0, touches=False, unseen=0, guessed=0)
    """
    # A format ends at powers of two, as octaves do: so counting by octaves is exact, but
    # in the topmost one, where it may end in between.
    lowest, counts = histogram.octaves
    flush, normal, top = (
        max(0, edge - exponent - lowest)
        for edge in (span["flush"], span["normal"], span["top"] + 1)
    )
    lost = sum(counts[:flush])
    return Fate(
        nonzero=sum(counts) + histogram.unseen,
        lost=lost + histogram.unseen,
        subnormal=sum(counts[flush:normal]),
        overflowed=sum(counts[top:]),
        touches=histogram.amax + exponent >= span["limit"],
        unseen=histogram.unseen,
        guessed=sum(counts[: histogram.guessed]),
    )


def summed(fates: Iterable[Fate]) -> Fate:
    """Of several rows together.

    Example:
        >>> summed([Fate(10, 4), Fate(2, 0, touches=True)])
        Fate(nonzero=12, lost=4, subnormal=0, overflowed=0, touches=True, unseen=0, guessed=0)
    """
    sums = Fate._make(map(sum, zip(Fate(), *fates, strict=True)))
    return sums._replace(touches=bool(sums.touches))


def best_scale(
    stored: Sequence[tuple[Histogram, FormatRange]], around: int, reach: int = REACH
) -> int | None:
    """The exponent of the loss scale at which the least is lost and nothing overflows.

    Every row keeps its offset to the loss scale, and `SPARE` octaves below overflow. Of equally
    good scales the lowest is taken: it has the most headroom.

    Args:
        stored: histograms of rows that follow the loss scale, with their formats' ranges.
        around: where to look.
        reach: how far, up and down.

    Returns:
        None if there is nothing to move, or if something overflows wherever it is moved.

    Example:
        >>> from gradscale.recording.schema import Octaves
        >>> from gradscale.report.ranges import ranges_of
        >>> seen = Histogram(0, 0.0, Octaves(-30, (4, *[0] * 29, 6)), 0, 0, 0, 0.5)
        >>> best_scale([(seen, ranges_of(set())["fp16"])], around=0)
        5
    """
    filled = [(it, span) for it, span in stored if math.isfinite(it.amax)]
    if not filled:
        return None
    # The highest exponent at which none overflows: amax + exponent < limit.
    room = min(math.ceil(span["limit"] - it.amax) - 1 - it.offset for it, span in filled)
    scales = range(around - reach, min(around + reach, room - SPARE) + 1)
    lost = {
        scale: sum(fate(it, span, it.offset + scale).lost for it, span in filled)
        for scale in scales
    }
    return min(lost, key=lambda scale: (lost[scale], scale), default=None)
