"""The warnings of a run that takes no step any more, whatever the reason."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

from gradscale.callers import level_of_caller
from gradscale.outcomes.triage import Reason

PATIENCE = 5
"""Consecutive skips before anybody is alarmed: a scale that starts too high takes a few."""

HORIZON = 10
"""Overflows left before the floor at which the alarm sounds."""

FIRST = 20
"""Skips in a row at which the alarm sounds first: more than a stretch of bad batches."""

LATER: dict[Reason, int] = {"overflow": 100, "nonfinite_gradient": 100}
"""The same where overflows are expected, or a warning of its own has come before.

From 2^64 a hundred overflows lead to 2^-36, where no healthy run ends up.
"""

WAYS_OUT: dict[Reason, str] = {
    "overflow": "Gradients overflow at every scale that was tried: look for a layer or a learning "
    "rate that explodes; `scaler.last_step.culprits` names the parameters.",
    "nonfinite_gradient": "Gradients of a skipped step were left in `.grad` and spoil every step "
    "after it: call `optimizer.zero_grad()` also after a step that was skipped.",
    "nonfinite_loss": "The loss is infinite or NaN, at a lower scale, too, where one was tried: "
    "look at what the loss is made of (a logarithm of 0, a label out of range, a division).",
    "nonfinite_parameter": "A weight is infinite or NaN, and no later step can mend it: go back to "
    "a checkpoint from before.",
    "nonfinite_input": "An input is infinite or NaN: clean the data, or drop such batches.",
}


class Alarm(NamedTuple):
    """What an alarm says.

    Attributes:
        in_a_row: how many steps of one optimizer have been skipped, one after the other.
        since: the number of the update that saw the first of them.
        reason: of the latest one.
        message: all of it in words, with a way out.
    """

    in_a_row: int
    since: int
    reason: Reason
    message: str


class SkipAlarm:
    """Sounds after a few skips in a row and after ten times as many; before the floor is reached.

    Attributes:
        on_alarm: called with every `Alarm`, before it becomes a warning; what they raise comes out
            of `update()`.
    """

    def __init__(self) -> None:
        self.on_alarm: list[Callable[[Alarm], object]] = []
        self._near_floor = False

    def hear(
        self, in_a_row: int, update: int, reason: Reason, hint: Callable[[], str] = str
    ) -> None:
        """Takes note of a skipped step.

        Args:
            in_a_row: steps of this optimizer skipped in a row, this one included.
            update: how many updates there were by now.
            reason: of this skip.
            hint: what else is known, asked for only if the alarm sounds.
        """
        first = LATER.get(reason, FIRST)
        if in_a_row < first or not _is_power_of_ten(in_a_row / first):
            return
        since = update - in_a_row + 1
        message = (
            f"{in_a_row} steps in a row were skipped, since update {since}; the last one for "
            f"{reason}. {WAYS_OUT[reason]}{hint()}"
        )
        self._sound(Alarm(in_a_row, since, reason, message))

    def hear_scale(
        self,
        in_a_row: int,
        update: int,
        scale: float,
        floor: float,
        backoff_factor: float,
        alarm_below: float = 0.0,
    ) -> None:
        """Takes note of a step skipped for overflow: warns once before the scale is at its end.

        Args:
            in_a_row: steps skipped in a row, this one included.
            update: how many updates there were by now.
            scale: the scale of this step.
            floor: the lowest scale the policy allows.
            backoff_factor: what an overflow multiplies the scale by.
            alarm_below: a scale that this overflow must not fall below in silence.
        """
        if self._near_floor or not math.isfinite(scale):
            return
        too_low = max(scale * backoff_factor, floor) < alarm_below
        if in_a_row < PATIENCE and not too_low:
            return
        # Back-offs from here to the floor.
        left = max(0, math.ceil(math.log(max(scale / floor, 1.0)) / -math.log(backoff_factor)))
        if scale >= 1 and left > HORIZON and not too_low:
            return
        self._near_floor = True
        message = (
            f"{_steps(in_a_row)} skipped for overflow; the loss scale is down to "
            f"{scale:g} and reaches its floor {floor:g} in {left} more. "
            "`scaler.last_step.culprits` names the parameters; a gradient that overflows at any "
            "scale is a problem of the model or of the learning rate."
        )
        self._sound(Alarm(in_a_row, update - in_a_row + 1, "overflow", message))

    def _sound(self, alarm: Alarm) -> None:
        for callback in self.on_alarm:
            callback(alarm)
        warnings.warn(alarm.message, stacklevel=level_of_caller())


def _is_power_of_ten(ratio: float) -> bool:
    # A logarithm may be off by a rounding; powers of ten are exact up to 10^22.
    return ratio == 10.0 ** round(math.log10(ratio))


def _steps(in_a_row: int) -> str:
    return "a step was" if in_a_row == 1 else f"{in_a_row} steps in a row were"
