"""How many bytes a recording may spend on what not every step can afford."""

from __future__ import annotations

import math
from dataclasses import dataclass

HORIZON = 100_000
"""The number of steps at which a recording reaches its size."""

DENSE = 1_000
"""Up to about here the allowance grows evenly; then with the logarithm of the steps."""

FIRST = 0.15
"""What may be spent at once, so that short runs keep all or most."""

_GUESS = 150  # bytes of a line without measurements, before any was written
_GUESSED_LINES = 1_000
_RESERVE = 0.95  # the rest is for headers, for rows introduced, for a last measurement too long
_OF_SEEN = 0.62  # the rest is for histograms: longer than the rows, and kept less often


@dataclass
class Budget:
    """Thins the measurements so that a run of any length stays small.

        allowance(n) = (0.95 size - HORIZON * bytes of an ordinary line) * growth(n)
        growth(n)    = FIRST + (1 - FIRST) * log(1 + n / DENSE) / log(1 + HORIZON / DENSE)
        kept         = what was spent on its kind so far is within the kind's part of allowance(n)

    So a small network keeps everything, and a large one keeps its measurements at intervals that
    grow. What is kept depends only on what was written, so a resumed recording thins on.

    Attributes:
        size: bytes at `HORIZON` steps.
        lines: steps written.
        ordinary: bytes of them without measurements.
        seen: bytes spent on rows and plans.
        octaves: bytes spent on histograms.

    Example:
        >>> budget = Budget(50_000_000)
        >>> budget.affords_seen(0)
        True
        >>> budget.seen += 4_000_000
        >>> budget.affords_seen(10), budget.affords_seen(1_000)
        (False, True)
    """

    size: int
    lines: int = 0
    ordinary: int = 0
    seen: int = 0
    octaves: int = 0

    def affords_seen(self, step: int) -> bool:
        """Whether the rows of this step are kept."""
        return self.seen <= _OF_SEEN * self._allowance(step)

    def affords_octaves(self, step: int) -> bool:
        """Whether its histograms are kept as well."""
        return self.octaves <= (1 - _OF_SEEN) * self._allowance(step)

    def _allowance(self, step: int) -> float:
        # A guess has the weight of some steps: the first ones, often skipped, have long lines.
        line = (self.ordinary + _GUESS * _GUESSED_LINES) / (self.lines + _GUESSED_LINES)
        later = math.log1p(step / DENSE) / math.log1p(HORIZON / DENSE)
        # Logarithmic, for a run changes most at its beginning.
        growth = FIRST + (1 - FIRST) * later
        # What ordinary lines will take by then is set aside first.
        return max(0.0, _RESERVE * self.size - HORIZON * line) * growth
