"""A share as people read it: in percent, with two significant places and no exponent."""

from __future__ import annotations

import math


def percent(share: float, least: float = 0.0) -> str:
    """A share in percent.

    Args:
        share: between 0 and 1; NaN where it is not known.
        least: what lies below is only said to.

    Example:
        >>> percent(0.3333), percent(1e-6), percent(1.0), percent(math.nan)
        ('33 %', '0.0001 %', '100 %', '–')
        >>> percent(1e-9, least=1e-5)
        'under 0.001 %'
    """
    if share == 0 or not math.isfinite(share):
        return "0 %" if share == 0 else "–"
    if share < least:
        return f"under {percent(least)}"
    digits = max(0, 1 - math.floor(math.log10(100 * share)))
    text = f"{100 * share:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if digits else text} %"
