"""Base-2 exponents of numbers on the host, exact where a rounded logarithm is off by one."""

from __future__ import annotations

import math


def floor_exponent(value: float) -> int:
    """The exponent of the largest power of two that is at most `value`.

    Example:
        >>> floor_exponent(1.23), floor_exponent(0.23), floor_exponent(0.99), floor_exponent(2)
        (0, -3, -1, 1)
    """
    return math.frexp(value)[1] - 1


def ceil_exponent(value: float) -> int:
    """The smallest integer whose power of two is at least `value`.

    Example:
        >>> ceil_exponent(1.0), ceil_exponent(5), ceil_exponent(0.3)
        (0, 3, -1)
    """
    mantissa, exponent = math.frexp(value)
    return exponent - (mantissa == 0.5)
