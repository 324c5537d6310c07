"""When a step of layer-wise scaling measures, for as long as it is timed: never, or always."""

from __future__ import annotations

from typing import Any

NEVER = 10**9
"""Steps: longer than any benchmark."""


class Fixed:
    """A calendar that stays as it is, whatever measuring costs."""

    def __init__(self, measures: bool) -> None:
        self.every = 1 if measures else NEVER
        self.cost, self.since = 1, 0
        self.interval = self.every

    def costing(self, steps: int) -> Fixed:
        """Itself."""
        del steps
        return self

    def anew(self, step: int) -> Fixed:
        """Itself, too."""
        del step
        return self

    def slot(self, step: int) -> int:
        """Every step is one of its own."""
        return step

    def due(self, step: int) -> bool:
        """Whether a step measures: all do, or none."""
        del step
        return self.every == 1


def fix(scaler: Any, measures: bool) -> None:
    """From the step after next on every step of a layer-wise scaler measures, or none does.

    The next one is decided already, unless an overflow makes it measure.
    """
    scaler.layerwise.timing.calendar = Fixed(measures)


def quiet(scaler: Any) -> bool:
    """Whether the step under way does not measure; true of any other scaler."""
    layerwise = getattr(scaler, "layerwise", None)
    return layerwise is None or not layerwise.timing.now
