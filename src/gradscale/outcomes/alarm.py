"""The warning that comes before the scale reaches its floor, not after."""

from __future__ import annotations

import math
import warnings

PATIENCE = 5
"""Consecutive skips before anybody is alarmed: a scale that starts too high takes a few."""

HORIZON = 10
"""Overflows left before the floor at which the alarm sounds."""


class FloorAlarm:
    """Warns once when overflow after overflow drives the scale toward its floor or below 1."""

    def __init__(self) -> None:
        self._sounded = False

    def hear(self, consecutive: int, scale: float, floor: float, backoff_factor: float) -> None:
        """Takes note of a step skipped for overflow.

        Args:
            consecutive: steps skipped in a row, this one included.
            scale: the scale of this step.
            floor: the lowest scale the policy allows.
            backoff_factor: what an overflow multiplies the scale by.
        """
        if self._sounded or consecutive < PATIENCE or not math.isfinite(scale):
            return
        left = max(0, math.ceil(math.log(max(scale / floor, 1.0)) / -math.log(backoff_factor)))
        if scale >= 1 and left > HORIZON:
            return
        self._sounded = True
        warnings.warn(
            f"{consecutive} steps in a row were skipped for overflow; the loss scale is down to "
            f"{scale:g} and reaches its floor {floor:g} in {left} more. "
            "`scaler.last_step.culprits` names the parameters; a gradient that overflows at any "
            "scale is a problem of the model or of the learning rate.",
            stacklevel=4,
        )
