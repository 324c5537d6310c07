"""A run's steps brought down to a few numbers: where it skipped, how the scale moved, what fell."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby, pairwise

from gradscale.recording.schema import Step


@dataclass(frozen=True)
class Stretch:
    """Steps in a row that were skipped.

    Attributes:
        begin: the first of them.
        length: how many.
        reason: why the first was.
        scale: at its beginning.
    """

    begin: int
    length: int
    reason: str | None
    scale: float


@dataclass(frozen=True)
class Course:
    """How a run went.

    Attributes:
        steps: that were recorded.
        first: the index of the first.
        last: the index of the last.
        skipped: how many were skipped.
        reasons: these, by reason.
        unexplained: these, without a reason.
        growths: how often the scale rose between two steps.
        backoffs: how often it fell.
        scales: the first, the lowest, the highest and the last.
        longest: the longest stretch of skipped steps; None without any.
        final: the stretch in which the run ends; None if its last step was taken.
        first_bad_loss: the first step whose loss was not finite, among those taken whole.
        dropped: micro-batches that were left out.
        without_some: the steps that were taken without some, or skipped because none was left.
        bad_data: these, whose loss was not finite.
        backwards: the first step that is no later than the one before it, after that one; None if
            every step is later.
        lost: the lost share at the last step that measured it.
        lost_at: that step.
        method: what `lost` rests on.
    """

    steps: int
    first: int
    last: int
    skipped: int
    reasons: dict[str, int]
    unexplained: int
    growths: int
    backoffs: int
    scales: tuple[float, float, float, float]
    longest: Stretch | None = None
    final: Stretch | None = None
    first_bad_loss: int | None = None
    dropped: int = 0
    without_some: int = 0
    bad_data: int = 0
    backwards: tuple[int, int] | None = None
    lost: float | None = None
    lost_at: int | None = None
    method: str | None = None


def course_of(steps: Iterable[Step]) -> Course | None:
    """The course of a run; None if it has no step.

    Args:
        steps: in order, from `gradscale.recording.read`.

    Example:
        >>> course = course_of([Step(0, 8.0), Step(1, 8.0, True, "overflow"), Step(2, 4.0)])
        >>> course.skipped, course.backoffs, course.longest.begin, course.final
        (1, 1, 1, None)
    """
    steps = list(steps)
    if not steps:
        return None
    pairs = list(pairwise(steps))
    skipped = [step for step in steps if step.skipped]
    dropping = [step for step in steps if step.dropped]
    rows = groupby(steps, lambda step: step.skipped)
    stretches = [_stretch(list(row)) for skips, row in rows if skips]
    scales = [step.scale for step in steps]
    looked = ((step.step, step.seen) for step in reversed(steps) if step.seen is not None)
    lost_at, seen = next((at for at in looked if at[1].lost_share is not None), (None, None))
    return Course(
        steps=len(steps),
        first=steps[0].step,
        last=steps[-1].step,
        skipped=len(skipped),
        reasons=dict(Counter(step.reason for step in skipped if step.reason is not None)),
        unexplained=sum(step.reason is None for step in skipped),
        # Between two recorded steps: a resumed run may have left some out.
        growths=sum(after.scale > before.scale for before, after in pairs),
        backoffs=sum(after.scale < before.scale for before, after in pairs),
        # A scale of NaN is below and above nothing, so that it is passed over.
        scales=(scales[0], min(math.inf, *scales), max(-math.inf, *scales), scales[-1]),
        longest=max(stretches, key=lambda stretch: stretch.length, default=None),
        final=stretches[-1] if steps[-1].skipped else None,
        first_bad_loss=next(
            (s.step for s in steps if _has_bad_loss(s) and not (s.skipped or s.dropped)), None
        ),
        dropped=sum(step.dropped for step in dropping),
        without_some=len(dropping),
        bad_data=sum(map(_has_bad_loss, dropping)),
        backwards=next(((a.step, b.step) for a, b in pairs if b.step <= a.step), None),
        lost=None if seen is None else seen.lost_share,
        lost_at=lost_at,
        method=None if seen is None else seen.method,
    )


def _stretch(steps: list[Step]) -> Stretch:
    return Stretch(steps[0].step, len(steps), steps[0].reason, steps[0].scale)


def _has_bad_loss(step: Step) -> bool:
    return step.loss is not None and not math.isfinite(step.loss)
