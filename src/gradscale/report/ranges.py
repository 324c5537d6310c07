"""A format's range in whole octaves, as the page and the figures draw and count it."""

from __future__ import annotations

import math
from typing import TypedDict

from gradscale.formats import FloatFormat
from gradscale.plans.window import flush_octave

OFFERED = ("fp16", "bf16", "e5m2", "e4m3")


class FormatRange(TypedDict):
    """The octaves at which a format ends.

    Attributes:
        name: the short name.
        flush: the lowest octave that is not rounded to zero; what lies below is lost.
        normal: the lowest octave with full precision; from `flush` to here it is subnormal.
        top: the highest octave that holds a finite number.
        limit: log2 of the smallest magnitude that overflows.
        overflow: what becomes of a value above: ``inf``, ``nan`` or ``saturate``.
    """

    name: str
    flush: int
    normal: int
    top: int
    limit: float
    overflow: str


def range_of(format: FloatFormat) -> FormatRange:
    """The range of a format.

    Example:
        >>> half = range_of(FloatFormat.of("fp16"))
        >>> half["flush"], half["normal"], half["top"], round(2 ** half["limit"])
        (-25, -14, 15, 65520)
    """
    return {
        "name": format.name,
        "flush": flush_octave(format),
        "normal": format.min_exponent,
        "top": format.max_exponent,
        "limit": math.log2(format.overflow_threshold),
        "overflow": format.overflow,
    }


def ranges_of(names: set[str]) -> dict[str, FormatRange]:
    """The ranges of these formats and of those that are always offered, by name.

    What is not the name of a format is left out: nothing is drawn over its histograms.
    """
    found: dict[str, FormatRange] = {}
    for name in (*OFFERED, *sorted(names - set(OFFERED))):
        try:
            found[name] = range_of(FloatFormat.of(name))
        except ValueError:
            continue
    return found
