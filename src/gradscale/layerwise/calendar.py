"""When to measure: often at first, so that a plan is good after a few steps, then every N steps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Calendar:
    """Measuring steps: 0, 1, 2, 4, 8, … up to `every`, then each multiple of it.

    Args:
        every: steps between two measurements once the fast start is over, at least 1.

    Raises:
        ValueError: if `every` is no whole number of at least 1.

    Example:
        >>> calendar = Calendar(every=10)
        >>> [step for step in range(31) if calendar.due(step)]
        [0, 1, 2, 4, 8, 10, 20, 30]
    """

    every: int = 100

    def __post_init__(self) -> None:
        if not (isinstance(self.every, int) and self.every >= 1):  # pyright: ignore
            raise ValueError(
                f"`Layerwise(measure_every={self.every!r})` must be a whole number of at least 1. "
                "To measure at every step, pass 1."
            )

    def due(self, step: int) -> bool:
        """Whether `step`, counted from 0, is a measuring step."""
        if step >= self.every:
            return step % self.every == 0
        return step & (step - 1) == 0
