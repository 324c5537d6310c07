"""The scale, the loss and the largest gradient of every step, thinned only where there are many."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradscale.recording import Recording, Step
from gradscale.report.arrays import Floats
from gradscale.report.histograms import log2

# A step takes 20 bytes: 2.4 MB, before they are compressed.
LIMIT = 120_000
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Timeline:
    """One entry a step, in order.

    Attributes:
        step: the steps.
        scale: log2 of the loss scale; NaN without one.
        loss: NaN where it was not recorded, or was not finite.
        broken: whether the loss was recorded as infinite or NaN.
        amax: log2 of the largest gradient; NaN where it was not recorded.
        lost: the share of lost elements; NaN but on measured steps.
        groups: how many loss scales were in use; NaN where it was not recorded.
        skipped: the steps that were skipped.
        dropping: the steps that lack some of their micro-batches, or all.
    """

    step: NDArray[np.int64]
    scale: Floats
    loss: Floats
    broken: NDArray[np.bool_]
    amax: Floats
    lost: Floats
    groups: Floats
    skipped: tuple[Step, ...]
    dropping: tuple[Step, ...]

    @staticmethod
    def of(recording: Recording) -> Timeline:
        """All steps of a recording."""
        steps = recording.steps
        return Timeline(
            step=np.array([step.step for step in steps], dtype=np.int64),
            scale=np.array([log2(step.scale) for step in steps]),
            loss=_floats(step.loss for step in steps),
            broken=np.array(
                [s.loss is not None and not math.isfinite(s.loss) for s in steps], bool
            ),
            amax=np.array([math.nan if s.amax is None else log2(s.amax) for s in steps]),
            lost=_floats(None if s.seen is None else s.seen.lost_share for s in steps),
            groups=_floats(step.groups for step in steps),
            skipped=tuple(step for step in steps if step.skipped),
            dropping=tuple(step for step in steps if step.dropped),
        )

    @property
    def reasons(self) -> dict[str, int]:
        """How many steps were skipped for each reason, the most common first."""
        return dict(Counter(step.reason or UNKNOWN for step in self.skipped).most_common())


def _floats(values: Iterable[float | None]) -> Floats:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def extremes(values: Sequence[Floats], limit: int) -> NDArray[np.int64]:
    """The places to keep so that no minimum and no maximum of a stretch of steps goes missing.

    Args:
        values: series of equal length.
        limit: about how many places to keep; all of them if there are no more.

    Returns:
        Sorted indices; the first and the last place are always among them.

    Example:
        >>> extremes([np.array([0.0, 5.0, 1.0, -4.0, 0.0, 0.0])], 4).tolist()
        [0, 1, 3, 4, 5]
    """
    count = len(values[0])
    if count <= limit:
        return np.arange(count)
    # Each series keeps two places of a stretch.
    stretch = math.ceil(2 * len(values) * count / limit)
    # The ends say when the run began and ended.
    kept = {0, count - 1}
    # Each on its own: the least loss and the largest scale of a stretch are not at one step.
    for series in values:
        for start in range(0, count, stretch):
            part = series[start : start + stretch]
            if not np.isnan(part).all():
                kept |= {start + int(np.nanargmin(part)), start + int(np.nanargmax(part))}
    return np.array(sorted(kept), dtype=np.int64)
