"""A step that measured, between its end and the plan that is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from gradscale.backward.measure import Measuring
from gradscale.backward.measurements import Measurements
from gradscale.outcomes.outcome import StepOutcome


class Finished(NamedTuple):
    """What a measuring step left behind; on its way to the host.

    Attributes:
        measurings: one for each backward pass.
        step: what became of the step.
        scale: the loss scale at which it was measured.
    """

    measurings: Sequence[Measuring]
    step: StepOutcome
    scale: Tensor

    def merged(self) -> dict[str, Measurements]:
        """By signature, the passes through equal graphs counted as one. Waits for the copy."""
        merged: dict[str, Measurements] = {}
        for measuring in self.measurings:
            result = measuring.result()
            known = merged.get(measuring.signature)
            merged[measuring.signature] = result if known is None else known.merged([result])
        return merged

    def blames_scale(self) -> bool:
        """Whether a skipped step was lost to the scale, not to bad data. Waits for the device."""
        reasons = [outcome.reason for outcome in self.step if outcome.skipped]
        return not reasons or "overflow" in reasons
