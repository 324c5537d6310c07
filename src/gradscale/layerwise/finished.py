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
        bad_data: whether the data of some rank were bad; None if there is only this one.
    """

    measurings: Sequence[Measuring]
    step: StepOutcome
    scale: Tensor
    bad_data: bool | None = None

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
        return not (has_bad_data(self.step) if self.bad_data is None else self.bad_data)


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
