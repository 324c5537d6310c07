"""What a format makes of what was seen: a `Sight` becomes a `Row`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from gradscale.backward.measurements import Counts
from gradscale.formats import FloatFormat
from gradscale.plans.window import FAR, Window, flush_octave, window_of, with_flushed
from gradscale.watching.rows import Row
from gradscale.watching.sights import Sight, StoredAs

PRIOR = 16
"""Elements; see `with_flushed`. True zeros, as of a ReLU, are less often taken for flushed ones."""

UNSEEN = 12  # as `flushed_whole.NEAR`: what one product may take away
"""Octaves by which what has vanished whole should be lifted to see anything of it."""

# As float32 and bfloat16 have: they still hold what narrower formats flush.
_WIDE_EXPONENT_BITS = 8


def is_narrow(sights: Iterable[Sight]) -> bool:
    """Whether anything was held in less than float32, so that zeros need not be true ones."""
    return any(part.native != "fp32" for sight in sights for part in sight.parts)


def judge(
    sight: Sight,
    format: str | None,
    at: int | None = None,
    *,
    vanished: bool = False,
    narrow: bool = False,
) -> Row:
    """A row.

    Args:
        sight: what was seen.
        format: to judge it for; None for the one that it really has.
        at: as if stored at this exponent; None for the one that it has.
        vanished: whether its zeros were flushed; nobody knows from how far below.
        narrow: whether anything in the run was narrower than float32, so that zeros may be losses.

    Example:
        >>> seen = Counts(amax=1.0, zero=1, lowest=-30, octaves=(2, *[0] * 29, 5))
        >>> sight = Sight("head", "module", (0, 1), {StoredAs("fp32", None, 0): seen})
        >>> row = judge(sight, "fp16")
        >>> row.flushed, row.method, judge(sight, "fp16", at=10).flushed
        (2, 'counted', 0)
    """
    chosen = format or _narrowest(sight).name
    target = FloatFormat.of(chosen)
    activation = sight.kind == "activation"
    seen, whole, flushed, exact = Counts(), Counts(), 0, True
    for part, counts in sight.parts.items():
        true, is_exact = _true(part, counts, target)
        stored = part.exponent if at is None or activation else at  # no scale moves an activation
        seen, whole, exact = seen + counts, whole + true, exact and is_exact
        flushed += _lost(true, target, stored)
    window = window_of(whole, target)
    if vanished:
        # All of it, as far as anybody knows; nothing is left to tell a window by.
        flushed, exact = seen.zero, False
        window = Window(lo=min(FAR, _exponent(sight) + UNSEEN))
    return Row(
        name=sight.name,
        kind=sight.kind,
        format=chosen,
        counts=seen,
        exponent=_exponent(sight) if at is None or activation else at,
        flushed=flushed,
        method="counted" if exact else "extrapolated",
        window=window if exact else replace(window, extrapolated=True),
        negligible=sight.negligible,
        unsure=seen.zero if narrow else 0,
    )


def _narrowest(sight: Sight) -> FloatFormat:
    formats = [FloatFormat.of(part.native) for part in sight.parts]
    return min(formats, key=lambda format: format.exponent_bits + format.mantissa_bits)


def _true(part: StoredAs, counts: Counts, target: FloatFormat) -> tuple[Counts, bool]:
    """What there was before anything was lost, and whether that is known or estimated."""
    stored = FloatFormat.of(part.stored)
    before = part.rounded is not None and target == FloatFormat.of(part.rounded)
    wide = stored.exponent_bits >= _WIDE_EXPONENT_BITS and (
        part.stored == "fp32" or target.exponent_bits < _WIDE_EXPONENT_BITS
    )
    # Counted before it was rounded, or stored in a format that holds all that the target loses.
    if before or wide:
        return counts, True
    return with_flushed(counts, stored, part.exponent, prior=PRIOR), False


def _lost(counts: Counts, format: FloatFormat, exponent: int) -> int:
    """How many elements the format rounds to zero, exact for octaves that include their end."""
    return sum(counts.octaves[: max(0, flush_octave(format) - exponent - counts.lowest)])


def _exponent(sight: Sight) -> int:
    return min((part.exponent for part in sight.parts), default=0)
