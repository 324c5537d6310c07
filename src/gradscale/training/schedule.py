"""The learning rate as a function of the step."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, peak: float) -> float:
    """A linear warm-up over the first tenth, then half a cosine down to a twentieth of `peak`.

    Example:
        >>> [round(learning_rate(step, 100, 1.0), 2) for step in (0, 9, 10, 99)]
        [0.1, 1.0, 1.0, 0.05]
    """
    warm = max(1, steps // 10)
    if step < warm:
        return peak * (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    return peak * (0.05 + 0.95 * (1 + math.cos(math.pi * progress)) / 2)
