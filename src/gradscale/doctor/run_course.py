"""A run's steps brought down to a few numbers: where it skipped, how the scale moved, what fell."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

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
    walk = _Walk()
    for step in steps:
        walk.take(step)
    return walk.course()


@dataclass
class _Walk:
    count: int = 0
    first: Step | None = None
    last: Step | None = None
    reasons: dict[str, int] = field(default_factory=dict[str, int])
    unexplained: int = 0
    growths: int = 0
    backoffs: int = 0
    lowest: float = math.inf
    highest: float = -math.inf
    longest: Stretch | None = None
    begin: Step | None = None
    length: int = 0
    bad_loss: int | None = None
    dropped: int = 0
    without_some: int = 0
    bad_data: int = 0
    backwards: tuple[int, int] | None = None
    measured: Step | None = None

    def take(self, step: Step) -> None:
        if self.last is not None:
            self.growths += step.scale > self.last.scale
            self.backoffs += step.scale < self.last.scale
            if step.step <= self.last.step and self.backwards is None:
                self.backwards = self.last.step, step.step
        self.first = self.first or step
        self.last, self.count = step, self.count + 1
        self.lowest, self.highest = min(self.lowest, step.scale), max(self.highest, step.scale)
        bad = step.loss is not None and not math.isfinite(step.loss)
        if step.dropped:
            self.dropped += step.dropped
            self.without_some += 1
            self.bad_data += bad
        if step.skipped:
            self._skip(step)
        else:
            self.begin, self.length = None, 0
            if bad and not step.dropped and self.bad_loss is None:
                self.bad_loss = step.step
        if step.seen is not None and step.seen.lost_share is not None:
            self.measured = step

    def _skip(self, step: Step) -> None:
        if step.reason is None:
            self.unexplained += 1
        else:
            self.reasons[step.reason] = self.reasons.get(step.reason, 0) + 1
        self.begin, self.length = self.begin or step, self.length + 1
        if self.longest is None or self.length > self.longest.length:
            self.longest = self._stretch()

    def _stretch(self) -> Stretch | None:
        if self.begin is None:
            return None
        return Stretch(self.begin.step, self.length, self.begin.reason, self.begin.scale)

    def course(self) -> Course | None:
        if self.first is None or self.last is None:
            return None
        seen = None if self.measured is None else self.measured.seen
        return Course(
            steps=self.count,
            first=self.first.step,
            last=self.last.step,
            skipped=sum(self.reasons.values()) + self.unexplained,
            reasons=self.reasons,
            unexplained=self.unexplained,
            growths=self.growths,
            backoffs=self.backoffs,
            scales=(self.first.scale, self.lowest, self.highest, self.last.scale),
            longest=self.longest,
            final=self._stretch(),
            first_bad_loss=self.bad_loss,
            dropped=self.dropped,
            without_some=self.without_some,
            bad_data=self.bad_data,
            backwards=self.backwards,
            lost=None if seen is None else seen.lost_share,
            lost_at=None if self.measured is None else self.measured.step,
            method=None if seen is None else seen.method,
        )
