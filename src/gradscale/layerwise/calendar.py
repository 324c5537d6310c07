"""When to measure: often at first, and after an overflow, then every N steps."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gradscale.argument_checks import check_whole

DEFAULT_INTERVAL = 100
"""Steps; what a measuring step adds, up to the time of one step, is then at most a hundredth."""


@dataclass(frozen=True)
class Calendar:
    """Measuring steps: 0, 1, 2, 4, 8, … up to `interval`, then each multiple of it.

    An overflow begins it anew: gradients that left their windows are on the move.

    Args:
        every: steps between two measurements once the fast start is over, at least 1; None for 100,
            or as many times more as a measurement costs steps.
        cost: what one costs, in steps.
        since: the step from which it counts. Begun anew, it counts in steps of `cost`.

    Raises:
        ValueError: if `every` is no whole number of at least 1.

    Example:
        >>> calendar = Calendar(every=10)
        >>> [step for step in range(31) if calendar.due(step)]
        [0, 1, 2, 4, 8, 10, 20, 30]
        >>> Calendar().costing(3).interval, calendar.costing(3).interval
        (300, 10)
        >>> anew = Calendar().costing(3).anew(50)
        >>> [step for step in range(50, 90) if anew.due(step)]
        [50, 53, 56, 62, 74]
    """

    every: int | None = None
    cost: int = 1
    since: int = 0

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

    def anew(self, step: int) -> Calendar:
        """The same calendar, begun anew at `step`."""
        return replace(self, since=step)

    def next(self, step: int) -> int:
        """The first measuring step from `step` on; the calendar begins with `since`.

        Example:
            >>> Calendar(every=10).next(5), Calendar(every=10).next(9), Calendar(every=10).next(11)
            (8, 10, 20)
        """
        passed, unit = max(0, step - self.since), self._unit
        units = -(-passed // unit)
        power = unit * (1 << (units - 1).bit_length() if units > 1 else units)
        regular = -(-passed // self.interval) * self.interval
        return self.since + (power if power < self.interval else regular)

    def due(self, step: int) -> bool:
        """Whether `step`, counted from 0, is a measuring step."""
        return self.next(step) == step

    def slot(self, step: int) -> int:
        """Steps of one slot have the same measuring steps behind them, had nothing begun it anew.

        Example:
            >>> [Calendar(every=10).slot(step) for step in (0, 1, 2, 3, 4, 9, 10, 19, 20)]
            [0, 1, 2, 2, 3, 4, 5, 5, 6]
        """
        if step < self.interval:
            return step.bit_length()
        return (self.interval - 1).bit_length() + step // self.interval

    @property
    def _unit(self) -> int:
        """Of the powers of two, in steps: after an overflow what is dear is measured less often."""
        return self.cost if self.since and self.every is None else 1
