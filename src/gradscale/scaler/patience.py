"""Whether a loss that stays non-finite does so at any scale: found out by trying a lower one."""

from __future__ import annotations

from torch import Tensor

from gradscale.outcomes.outcome import OptimizerOutcome
from gradscale.ranks import distributed
from gradscale.scaler.held_scale import HeldScale

AFTER = 24
"""Skips in a row before a lower scale is tried, and again after each ten times as many.

Fewer would try it on a run of bad batches, where every trial is a step at a scale of 1.
"""

TRIAL = 1.0
"""The scale of the trial: what is not finite there is not so because it was scaled."""

LONGEST = 8
"""Steps that a trial may take to be heard of, on a device that is behind the host."""


class Patience:
    """Looks for a loss that depends on the scale, where nothing else bears witness.

        a few skips in a row whose loss was not finite:  one step at a scale of 1
        not finite there either:  back to the scale of before; the data is bad, and stays bad
        finite there:             back to the scale of before, once more
        finite there, too:        the data was bad, and is good now
        not finite again:         it depends on the scale: an overflow, which lowers the scale

    A loss that is seen to depend on the scale (`Evidence`) lowers it at once, as an overflow does;
    if a few of those do not help, the same trial tells whether any scale would.

    Attributes:
        depends: whether this loop's losses depend on the scale: 1, 0, or -1 while nobody knows.
    """

    def __init__(self) -> None:
        self.depends = -1
        self._before = 0.0
        self._return_to = 0.0
        self._trial: str | None = None
        self._heard = 0
        self._first: float | None = None
        self._proved = False

    @property
    def active(self) -> bool:
        """Whether steps that are taken mean something, too."""
        return self._trial is not None or self._first is not None or self.depends == 0

    def hear(self, outcome: OptimizerOutcome, held: HeldScale) -> None:
        """Takes note of a step, in order; may change the scale of the next one."""
        scale = held.tensor
        # Ranks that hear by themselves may hear different things, and must not act on them.
        alone = distributed() and outcome.skipped and not outcome.agreed
        if scale is None or alone or held.constant:
            return
        bad = outcome.skipped and (outcome.reason == "nonfinite_loss" or outcome.suspected)
        if self._trial is not None:
            self._hear_in_trial(outcome, bad, held, scale)
        elif bad:
            self._hear_bad(outcome, held, scale)
        elif not outcome.skipped:
            self._first, self._proved = None, False
            self.depends = -1 if self.depends == 0 else self.depends

    def _hear_bad(self, outcome: OptimizerOutcome, held: HeldScale, scale: Tensor) -> None:
        if self._first is None:
            self._first = outcome.scale
        in_a_row = outcome.in_a_row
        # Ever rarer: each trial is a step at a scale of 1, and a run of bad data may be long.
        due = in_a_row in (AFTER, 10 * AFTER, 100 * AFTER, 1000 * AFTER)
        if due and not self._proved and max(TRIAL, held.floor) < self._first:
            now = scale.item()
            # What an overflow has lowered goes on from there, if the trial says so.
            self._before, self._return_to = self._first, now if outcome.suspected else self._first
            self._trial, self._heard = "low", 0
            held.set_to(scale, max(TRIAL, held.floor))

    def _hear_in_trial(
        self, outcome: OptimizerOutcome, bad: bool, held: HeldScale, scale: Tensor
    ) -> None:
        self._heard += 1
        expected = max(TRIAL, held.floor) if self._trial == "low" else self._before
        if outcome.scale != expected:
            # The scale of the trial never came: something else has set it.
            if self._heard > LONGEST:
                self._end(held, scale, self._before)
            return
        if self._trial == "low":
            if bad:  # no scale helps
                self.depends = 0
                self._end(held, scale, self._before)
            elif self._return_to < self._before:  # it is overflow after overflow, and goes on
                self._proved = True
                self._end(held, scale, self._return_to)
            else:
                self._trial, self._heard = "again", 0
                held.set_to(scale, self._before)
            return
        if bad:
            self.depends, self._proved = 1, True
            self._end(held, scale, self._before * held.backoff_factor)
        else:
            self._end(held, scale, None)

    def _end(self, held: HeldScale, scale: Tensor, value: float | None) -> None:
        self._trial = self._first = None
        if value is not None:
            held.set_to(scale, max(value, held.floor))
