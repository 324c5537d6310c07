"""When to measure: often at first, so that a plan is good after a few steps, then every N steps."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gradscale.argument_checks import check_whole

DEFAULT_INTERVAL = 100
"""Steps; what a measuring step adds, up to the time of one step, is then at most a hundredth."""


@dataclass(frozen=True)
class Calendar:
    """Measuring steps: 0, 1, 2, 4, 8, … up to `interval`, then each multiple of it.

    Args:
        every: steps between two measurements once the fast start is over, at least 1; None for 100,
            or as many times more as a measurement costs steps.
        cost: what one costs, in steps.

    Raises:
        ValueError: if `every` is no whole number of at least 1.

    Example:
        >>> calendar = Calendar(every=10)
        >>> [step for step in range(31) if calendar.due(step)]
        [0, 1, 2, 4, 8, 10, 20, 30]
        >>> Calendar().costing(3).interval, calendar.costing(3).interval
        (300, 10)
    """

    every: int | None = None
    cost: int = 1

    def __post_init__(self) -> None:
        if self.every is not None:
            otherwise = "To measure at every step, pass 1; None leaves it to what measuring costs."
            check_whole("Layerwise", "measure_every", self.every, 1, otherwise)

    @property
    def interval(self) -> int:
        """Steps between two measurements once the fast start is over."""
        return DEFAULT_INTERVAL * self.cost if self.every is None else self.every

    def costing(self, steps: int) -> Calendar:
        """The same calendar, where a measurement costs so many steps."""
        return replace(self, cost=steps)

    def next(self, step: int) -> int:
        """The first measuring step from `step` on.

        Example:
            >>> Calendar(every=10).next(5), Calendar(every=10).next(9), Calendar(every=10).next(11)
            (8, 10, 20)
        """
        power = 1 << (step - 1).bit_length() if step > 1 else step
        return power if power < self.interval else -(-step // self.interval) * self.interval

    def due(self, step: int) -> bool:
        """Whether `step`, counted from 0, is a measuring step."""
        if step >= self.interval:
            return step % self.interval == 0
        return step & (step - 1) == 0
