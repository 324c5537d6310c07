"""What overflows have taught of one graph structure, and how it is forgotten."""

from __future__ import annotations

from typing import NamedTuple

from gradscale.plans.tail import Tail

FORGETTING = 1000
"""Steps without an overflow after which an octave of reach is given up."""

_FEW = 100
"""Steps that a plan is in force at least: one overflow among fewer is one among so many."""


class Outliers(NamedTuple):
    """A tail that fades, as integers that a checkpoint holds.

        each `FORGETTING` steps     reach = reach - 1
        since the last overflow     times = times // 2

    So a scale that the reach holds down rises an octave at a time, as under torch's scaler, and
    what overflows again is held down for longer.

    Attributes:
        reach: octaves by which gradients went beyond what was measured, at least.
        times: overflows that still counted after the last.
        step: the step of the last.

    Example:
        >>> seen = Outliers(reach=5, times=1, step=70)
        >>> seen.tail(100), seen.tail(1070)
        (Tail(reach=5, times=1, steps=100), Tail(reach=4, times=0, steps=1000))
    """

    reach: int = 0
    times: int = 0
    step: int = 0

    def tail(self, step: int) -> Tail:
        """What a planner is told at this step."""
        octaves = max(0, step - self.step) // FORGETTING
        steps = max(_FEW, min(step, FORGETTING))
        return Tail(max(0, self.reach - octaves), self.times >> min(octaves, 64), steps)
