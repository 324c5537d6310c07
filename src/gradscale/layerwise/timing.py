"""Whether a step measures: the calendar, and whoever asked for another measurement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from gradscale.layerwise.agreement import Wishes, on_any_rank, same_on_all_ranks
from gradscale.layerwise.calendar import Calendar
from gradscale.outcomes.outcome import StepOutcome

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class EndedStep(NamedTuple):
    """A step that has ended.

    Attributes:
        outcome: what became of it, which the host may hear of later.
        number: of the step.
        signature: of the only graph that it ran through, if nobody measured it there.
    """

    outcome: StepOutcome
    number: int
    signature: str | None


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
        self._unsettled: list[EndedStep] = []
        self._wishes: Wishes[EndedStep] = Wishes()
        self._begin()

    def __str__(self) -> str:
        """When the next measurement is, as far as that is known; waits for nothing."""
        if self.now:
            return f"measures in this step, {self.steps}"
        following = self.steps + 1
        return f"measures in step {following if self.again else self.calendar.next(following)}"

    def at_once(self) -> None:
        """The step under way measures, and so does the next."""
        self.now = self.again = True

    def follow(self) -> None:
        """An overflow is known of: the steps behind the one under way measure more often."""
        self.calendar = self.calendar.anew(self.steps + 1)

    def measuring_costs(self, steps: int) -> None:
        """What a measurement costs: from the next step on the calendar goes by it."""
        self.calendar = self.calendar.costing(steps)

    def next_step(self) -> None:
        """A step has ended."""
        self.steps += 1
        self._begin()

    def lost_steps(
        self, last: EndedStep, groups: Sequence[ProcessGroup] = ()
    ) -> Iterator[EndedStep]:
        """Steps that a smaller scale would have saved, as soon as that is known.

        After each of them the next step measures. With `groups` a collective: all ranks measure if
        some rank wants to, or lost its step to anything, and all name the same steps.
        """
        if groups:
            yield from self._lost_on_ranks(last, groups)
            return
        self._unsettled.append(last)
        while self._unsettled and all(outcome.settled for outcome in self._unsettled[0].outcome):
            step = self._unsettled.pop(0)
            if lost_to_scale(step.outcome):
                self.again = True
                yield step

    def _lost_on_ranks(
        self, last: EndedStep, groups: Sequence[ProcessGroup]
    ) -> Iterator[EndedStep]:
        flags = [flag for outcome in last.outcome for flag in outcome.found_inf]
        self.again, lost = self._wishes.ask(self.again, flags, groups, last)
        if lost is None:
            return
        # More collectives, and host reads, after such a step only.
        device = flags[0].device if flags else torch.device("cpu")
        same = same_on_all_ranks([lost.signature or ""], groups, device)
        skipped = any(outcome.skipped for outcome in lost.outcome)
        otherwise = skipped and not lost_to_scale(lost.outcome)
        if not on_any_rank(otherwise, groups, device) and same:
            yield lost

    def resume(self, steps: int, measures: bool, cost: int, since: int) -> None:
        """Goes on where another run stopped, before a step that measures or does not."""
        self.calendar = self.calendar.costing(cost).anew(since)
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
