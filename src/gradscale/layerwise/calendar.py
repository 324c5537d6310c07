"""When to measure: often at first, and after an overflow, then every N steps."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gradscale.argument_checks import check_whole

DEFAULT_INTERVAL = 100
"""Steps; what a measuring step adds, up to the time of one step, is then at most a hundredth."""


@dataclass(frozen=True)
class Calendar:
    """Measuring steps: 0, 1, 2, 4, 8, … up to `interval`, then each multiple of it.

    Gradients that left their windows are on the move: after an overflow the next step measures, and
    those 1, 2 and 4 behind it: as many of them as cost about four steps, one at least.

    Args:
        every: steps between two measurements once the fast start is over, at least 1; None for 100,
            or as many times more as a measurement costs steps.
        cost: what one costs, in steps.
        since: the step behind the last overflow; 0 if there was none.

    Raises:
        ValueError: if `every` is no whole number of at least 1.

    Example:
        >>> calendar = Calendar(every=10)
        >>> [step for step in range(31) if calendar.due(step)]
        [0, 1, 2, 4, 8, 10, 20, 30]
        >>> Calendar().costing(3).interval, calendar.costing(3).interval
        (300, 10)
        >>> anew = Calendar().anew(130)
        >>> [step for step in range(130, 301) if anew.due(step)]
        [130, 131, 132, 134, 200, 300]
        >>> [step for step in range(130, 301) if anew.costing(3).due(step)]
        [130, 131, 256, 300]
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
        """The same calendar after an overflow in the step before this one."""
        return replace(self, since=step)

    def next(self, step: int) -> int:
        """The first measuring step from `step` on.

        Example:
            >>> Calendar(every=10).next(5), Calendar(every=10).next(9), Calendar(every=10).next(11)
            (8, 10, 20)
        """
        power = 1 << (step - 1).bit_length() if step > 1 else step
        regular = power if power < self.interval else -(-step // self.interval) * self.interval
        return min([regular, *(later for later in self._following() if later >= step)])

    def due(self, step: int) -> bool:
        """Whether `step`, counted from 0, is a measuring step."""
        if step in self._following():
            return True
        if step >= self.interval:
            return step % self.interval == 0
        return step & (step - 1) == 0

    def slot(self, step: int) -> int:
        """Steps of one slot have the same measuring steps behind them, but for overflows.

        Example:
            >>> [Calendar(every=10).slot(step) for step in (0, 1, 2, 3, 4, 9, 10, 19, 20)]
            [0, 1, 2, 2, 3, 4, 5, 5, 6]
        """
        if step < self.interval:
            return step.bit_length()
        return (self.interval - 1).bit_length() + step // self.interval

    def _following(self) -> list[int]:
        """The steps that measure because of the last overflow."""
        if not self.since:
            return []
        return [self.since + steps for steps in _BEHIND[: -(-len(_BEHIND) // self.cost)]]


_BEHIND = (0, 1, 2, 4)
"""As many of them as cost four steps, rounded up to a whole measurement."""
