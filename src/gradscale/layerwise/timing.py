"""Whether a step measures: the calendar, and whoever asked for another measurement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gradscale.layerwise.agreement import Wishes
from gradscale.layerwise.calendar import Calendar
from gradscale.outcomes.outcome import StepOutcome

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Timing:
    """When to measure.

    Attributes:
        calendar: the steps that measure in any case.
        steps: how many steps have ended.
        now: whether the step under way measures.
        again: whether the next one does, whatever the calendar says.

    Example:
        >>> timing = Timing(Calendar(every=4))
        >>> timing.now, timing.again
        (True, False)
    """

    def __init__(self, calendar: Calendar) -> None:
        self.calendar = calendar
        self.steps = 0
        self.again = False
        self._unsettled: list[StepOutcome] = []
        self._wishes = Wishes()
        self._begin()

    def at_once(self) -> None:
        """The step under way measures, and so does the next."""
        self.now = self.again = True

    def measuring_costs(self, steps: int) -> None:
        """What a measurement costs: from the next step on the calendar goes by it."""
        self.calendar = self.calendar.costing(steps)

    def next_step(self) -> None:
        """A step has ended."""
        self.steps += 1
        self._begin()

    def lost_steps(self, last_step: StepOutcome) -> Iterator[StepOutcome]:
        """Steps that a smaller scale would have saved, as soon as that is known; each measures."""
        self._unsettled.append(last_step)
        while self._unsettled and all(outcome.settled for outcome in self._unsettled[0]):
            step = self._unsettled.pop(0)
            if lost_to_scale(step):
                self.again = True
                yield step

    def ask_ranks(self, last_step: StepOutcome, groups: Sequence[ProcessGroup]) -> None:
        """All ranks measure if some rank wants to, or lost its step. A collective."""
        flags = [flag for outcome in last_step for flag in outcome.found_inf]
        self.again = self._wishes.ask(self.again, flags, groups)

    def resume(self, steps: int, measures: bool, cost: int) -> None:
        """Goes on where another run stopped, before a step that measures or does not."""
        self.calendar = self.calendar.costing(cost)
        self._unsettled.clear()
        # Not asked of the calendar, which may have changed since that run asked it.
        self.steps, self.now, self.again = steps, measures, False

    def _begin(self) -> None:
        self.now = self.again or self.calendar.due(self.steps)
        self.again = False


def has_bad_data(step: StepOutcome) -> bool:
    """Whether a skipped step was lost to bad data on this rank. Waits for the device."""
    reasons = [outcome.reason for outcome in step if outcome.skipped]
    return bool(reasons) and "overflow" not in reasons


def lost_to_scale(step: StepOutcome) -> bool:
    """Whether a smaller scale would have saved a skipped step. Waits for the device.

    Asks for the reason: what a fused optimizer did reaches the host as a mere flag, later.
    """
    return any(
        outcome.skipped and not outcome.unrepresentable and outcome.reason == "overflow"
        for outcome in step
    )
