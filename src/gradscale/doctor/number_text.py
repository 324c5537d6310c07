"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping


def scale_words(value: float) -> str:
    """A loss scale, as a power of two where it is one.

    Example:
        >>> scale_words(65536.0), scale_words(1000.0), scale_words(2.0**-126)
        ('2^16 (65536)', '1000', '2^-126 (1.17549e-38)')
    """
    if not math.isfinite(value) or value <= 0 or not is_power_of_two(value):
        return f"{value:g}"
    # Whole up to 2^33; further down nobody reads more than six digits of a fraction.
    plain = f"{value:.10g}" if value >= 1 else f"{value:g}"
    return f"2^{math.frexp(value)[1] - 1} ({plain})"


def is_power_of_two(value: float) -> bool:
    """Whether multiplying by it only moves the exponent.

    Example:
        >>> is_power_of_two(0.5), is_power_of_two(3.0)
        (True, False)
    """
    # `frexp` gives a mantissa in [0.5, 1).
    return math.frexp(value)[0] == 0.5


def counted(count: int, one: str, several: str | None = None) -> str:
    """A count and what it counts.

    Example:
        >>> counted(1, "step"), counted(2500, "step"), counted(2, "loss", "losses")
        ('1 step', '2,500 steps', '2 losses')
    """
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def reasons_text(reasons: Mapping[str, int]) -> str:
    """Skipped steps by reason, the most frequent first.

    Example:
        >>> reasons_text({"nonfinite_loss": 2, "overflow": 5})
        '5 overflow, 2 nonfinite_loss'
    """
    ordered = sorted(reasons.items(), key=lambda item: -item[1])
    return ", ".join(f"{count:,} {name}" for name, count in ordered)


def setting_text(value: object) -> str:
    """A setting as it would be typed.

    Example:
        >>> setting_text(2000), setting_text(2.0**-14), setting_text("growth"), setting_text(0.5)
        ('2000', '2**-14', "'growth'", '0.5')
    """
    far = isinstance(value, float) and math.isfinite(value) and not 1e-3 < abs(value) < 1e4
    if isinstance(value, float) and far and value > 0 and is_power_of_two(value):
        return f"2**{math.frexp(value)[1] - 1}"
    return f"{value:g}" if isinstance(value, float) else repr(value)
