"""The window of exponents at which a tensor neither overflows nor loses more than a share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from gradscale.backward.measurements import Counts
from gradscale.exponents import ceil_exponent
from gradscale.formats import FloatFormat
from gradscale.plans.tail import NO_TAIL, Tail

FAR = 63
"""Windows are cut to ±FAR: float32, in which unlimited nodes work, holds gradients so scaled."""


@dataclass(frozen=True)
class Window:
    """The exponents ``[lo, hi]`` of a node: gradients stored as ``2**e`` times the true ones.

    Attributes:
        lo: below it more than the target share is flushed.
        hi: above it the headroom is not kept.
        limit: above it the largest gradient comes within an octave of overflow; at least `hi`.
        lost: the share flushed at `hi`, where the target cannot be met; else 0.
        extrapolated: whether `lo` rests on gradients that were already flushed when measured.

    Example:
        >>> 11 in Window(-8, 11, 13), 12 in Window(-8, 11, 13)
        (True, False)
    """

    lo: int = -FAR
    hi: int = FAR
    limit: int = FAR
    lost: float = 0.0
    extrapolated: bool = False

    def __contains__(self, exponent: int) -> bool:
        return self.lo <= exponent <= self.hi

    @property
    def free(self) -> bool:
        """Whether any exponent will do, as in a node that works in float32."""
        return self.lo <= -FAR and self.hi >= FAR


def window_of(
    counts: Counts,
    format: FloatFormat,
    *,
    flushed: float = 1e-3,
    headroom: int = 4,
    tail: Tail = NO_TAIL,
) -> Window:
    """The window of one tensor.

        lo = min e: the share with |x| * 2^e <= format.flush_threshold is at most `flushed`
        hi = max e: amax * 2^(e + headroom + tail.reach) < format.overflow_threshold

    If `lo` is above `hi` what is kept free above `amax` shrinks, to one octave at least; if that is
    not enough, overflow is avoided first: the window is the single exponent `hi`, and `lost` is the
    price. The reach takes nothing where `lo` can be kept. Where it cannot, it takes `tail.share`
    more: no larger share of the gradient is given for heavy steps than of the steps was lost.

    Args:
        counts: what the tensor held, unscaled; see `with_flushed` for one that had lost some.
        format: what holds it.
        flushed: the share of non-zero elements that may be lost.
        headroom: octaves to keep free above `amax`, at least 1.
        tail: what overflows have taught beyond these counts.

    Example:
        >>> half = FloatFormat.of("fp16")
        >>> window_of(Counts(1.5, octaves=(900, 100), lowest=-1), half)
        Window(lo=-24, hi=11, limit=13, lost=0.0, extrapolated=False)
        >>> window_of(Counts(1.5, octaves=(900, 100), lowest=-1), half, tail=Tail(5, 1)).hi
        6
    """
    if not counts.octaves:
        return Window()
    lo = lowest_exponent(counts, format, flushed)
    top = highest_exponent(counts.amax, format)
    # To keep the share that is flushed, the headroom gives way, down to one octave.
    hi = max(min(lo, top - 1), top - headroom)
    limit = min(top - 1, max(hi, top - headroom // 2))
    if tail.reach:
        least = lo
        if lo > hi:
            bearable = flushed_share(counts, format, hi) + tail.share
            least = lowest_exponent(counts, format, bearable)
        top -= tail.reach
        hi = min(hi, max(top - headroom, least))
        limit = min(limit, max(hi, top - headroom // 2))
    lost = flushed_share(counts, format, hi) if lo > hi else 0.0
    return Window(
        max(-FAR, min(lo, hi)),
        max(-FAR, min(hi, FAR)),
        max(-FAR, min(limit, FAR)),
        lost,
    )


def highest_exponent(amax: float, format: FloatFormat) -> int:
    """The largest exponent at which a magnitude stays finite; `FAR` octaves up for zero.

    Example:
        >>> half = FloatFormat.of("fp16")
        >>> highest_exponent(65519.0, half), highest_exponent(1.0, half)
        (0, 15)
    """
    if amax == 0:
        return 2 * FAR
    # By mantissa and exponent: a logarithm that was rounded may be off by one.
    mantissa, exponent = math.frexp(amax)
    limit_mantissa, limit_exponent = math.frexp(format.overflow_threshold)
    return limit_exponent - exponent - (mantissa >= limit_mantissa)


def lowest_exponent(counts: Counts, format: FloatFormat, flushed: float) -> int:
    """The smallest exponent at which at most the share `flushed` of the non-zeros is lost."""
    allowed = flushed * counts.nonzero
    below = 0
    for octave, count in enumerate(counts.octaves, counts.lowest):
        below += count
        if below > allowed:
            return flush_octave(format) - octave
    return -2 * FAR


def flushed_share(counts: Counts, format: FloatFormat, exponent: int) -> float:
    """The share of the non-zero elements that `format` flushes at `exponent`."""
    kept_from = flush_octave(format) - exponent - counts.lowest
    return sum(counts.octaves[: max(0, kept_from)]) / max(1, counts.nonzero)


def flush_octave(format: FloatFormat) -> int:
    """The lowest octave that `format` does not round to zero."""
    return format.min_exponent - format.mantissa_bits - 1


def with_flushed(
    counts: Counts, format: FloatFormat, stored_exponent: int, *, prior: int = 0
) -> Counts:
    """`counts` with an estimate of what `format` had flushed before anybody could count it.

    The octaves continue downwards as a geometric series, with the ratio of the two lowest that the
    cast left whole (1 if they do not fall). The zeros bound the sum: more than they are cannot have
    been flushed. Returned as it is if nothing reaches down to the smallest subnormal.

    Args:
        counts: of a tensor that was stored in `format`, unscaled.
        format: what held it.
        stored_exponent: the exponent at which it did.
        prior: how many elements the belief is worth that octaves halve on the way down, as they do
            where values are spread smoothly around zero; a ratio above one half then comes nearer
            to it by a tenth of the distance an octave. It keeps stray elements, and zeros that are
            true, from being taken for a tail without end. 0 continues what was seen.
    """
    if not counts.zero:
        return counts
    # The octave of the smallest subnormal holds what rounds to it as well, so it is not whole.
    partial = flush_octave(format) + 1 - stored_exponent - counts.lowest
    if not 0 <= partial < len(counts.octaves):
        return counts
    tail = _geometric_tail(counts.octaves[partial:], counts.zero, prior)
    if not tail:
        return counts
    # Between the partial octave and the first lost one lies the octave that rounds up into it.
    octaves = (*reversed(tail), 0, *counts.octaves[partial:])
    return Counts(
        amax=counts.amax,
        zero=counts.zero - sum(tail),
        nonfinite=counts.nonfinite,
        lowest=counts.lowest + partial - 1 - len(tail),
        octaves=octaves,
        moments=counts.moments,
    )


def _geometric_tail(octaves: tuple[int, ...], zeros: int, prior: int) -> list[int]:
    """How many were lost in each octave below those two that rounding touched, highest first."""
    partial, whole, above = (*octaves, 0, 0)[:3]
    ratio = whole / above if above > whole > 0 else 1.0
    if prior:
        ratio = min(1.0, (whole + prior / 2) / (above + prior))
    expected = float(whole or partial)
    tail: list[int] = []
    for octave in range(FAR + _TOUCHED):
        expected *= ratio
        if prior and ratio > _HALVING:
            ratio -= _APPROACH * (ratio - _HALVING)
        if octave >= _TOUCHED:
            if expected < 0.5 or not zeros:
                break
            tail.append(min(zeros, round(expected)))
            zeros -= tail[-1]
    return tail


# The octave of the smallest subnormal, and the one below it, which rounds up into it.
_TOUCHED = 2
# Near zero a smooth density is flat: each octave down is half as wide, and holds half as many.
_HALVING = 0.5
_APPROACH = 0.1


def sum_window(largest_term: float, terms: int, format: FloatFormat) -> Window:
    """The window of a sum while it is added up: ``ceil(log2 n)`` octaves above its largest term.

    Any partial sum is at most `terms` times the largest term, whatever cancels later.
    """
    top = highest_exponent(largest_term, format) - ceil_exponent(terms) - 1
    bound = max(-FAR, min(top, FAR))
    return Window(hi=bound, limit=bound)


def intersection(windows: Iterable[Window]) -> Window:
    """What all windows share: where it is empty, overflow is avoided first and `lo` gives way.

    Example:
        >>> intersection([Window(-8, 11, 13), Window(2, 20, 22)])
        Window(lo=2, hi=11, limit=13, lost=0.0, extrapolated=False)
    """
    found = [Window(), *windows]
    hi = min([window.hi for window in found])
    return Window(
        min(max([window.lo for window in found]), hi),
        hi,
        min([window.limit for window in found]),
        max([window.lost for window in found]),
        any([window.extrapolated for window in found]),
    )
