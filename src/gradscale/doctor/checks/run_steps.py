"""A run, step by step: where it collapsed, and why."""

from __future__ import annotations

from collections.abc import Iterator

from gradscale.doctor.checks.skips import AT_START, MOST, WHY
from gradscale.doctor.examined_scaler import Patient
from gradscale.doctor.finding import Finding
from gradscale.doctor.number_text import counted, scale_words
from gradscale.doctor.run_course import Course, Stretch
from gradscale.outcomes.alarm import PATIENCE
from gradscale.percent import percent

MOST_LOST = 0.01
"""Share of the gradients' non-zero elements that may be lost before it is worth a warning."""


def check_run_steps(patient: Patient) -> Iterator[Finding]:
    """What the recorded steps say."""
    course = patient.course
    if course is None:
        return
    if course.backwards is not None:  # first: nothing else can be believed then
        before, after = course.backwards
        yield Finding(
            "error", "steps-run-backwards", "The steps are not in order.",
            f"Step {before:,} is followed by step {after:,}, among {course.steps:,} of them: "
            "two processes wrote into the recording, or a resumed run did not cut it back.",
            "Do not trust its figures. Give each process a folder of its own, and resume with "
            "`gradscale train --resume` or `Recorder(path, …, step=n)`.",
        )  # fmt: skip
    yield from _ending(course)
    if course.first_bad_loss is not None:
        yield Finding(
            "error", "bad-loss", f"The loss is not finite from step {course.first_bad_loss:,} on.",
            "The step was taken all the same, and what it did to the weights stays.",
            f"Go back to a checkpoint from before step {course.first_bad_loss:,}.",
        )  # fmt: skip
    if course.without_some - AT_START > MOST * course.steps:
        yield _dropping(course)
    if course.lost is not None and course.lost > MOST_LOST:
        yield Finding(
            "warning", "lost", f"{percent(course.lost)} of the gradients are lost to underflow.",
            f"Measured at step {course.lost_at} ({course.method}); the scale there ended at "
            f"{scale_words(course.scales[3])}.",
            "`gradscale report` shows where; a higher scale or "
            "`gradscale.GradScaler(layerwise=True)` keeps them.",
        )  # fmt: skip


def _dropping(course: Course) -> Finding:
    share = course.without_some / course.steps
    return Finding(
        "warning", "dropped",
        f"{percent(share)} of the steps lack some of their micro-batches.",
        f"`accumulate_(drop_overflow=True)` left out {course.dropped:,} in "
        f"{counted(course.without_some, 'step')}; the loss was not finite in {course.bad_data:,} "
        f"of these. A healthy run drops a few at its start and then in less than {percent(MOST)}.",
        "Where the loss is not finite, clean the data: what is left out is never learnt. "
        "Otherwise the scale is too high for some micro-batches: keep away from the limit with "
        "`gradscale.Band()`, or plan by layer (`layerwise=True`).",
    )  # fmt: skip


def _ending(course: Course) -> Iterator[Finding]:
    final, longest = course.final, course.longest
    if final is not None and final.length >= PATIENCE:
        # All steps, few, and for want of a lower scale: it may still be on its way down.
        if final.length == course.steps and final.length <= 2 * AT_START and final.reason in _MILD:
            yield _still_looking(course)
        else:
            yield _collapse(course, final)
    # Skips from the very first step are how a scale finds its place.
    elif longest is not None and longest.length >= PATIENCE and longest.begin > course.first:
        yield Finding(
            "warning", "skipped-in-a-row",
            f"{counted(longest.length, 'step')} in a row were skipped, from step "
            f"{longest.begin:,}.",
            f"{_why(longest)}; the scale was {scale_words(longest.scale)}. The run went on "
            "afterwards.",
            WHY.get(longest.reason or "", _OVERFLOW),
        )  # fmt: skip


_MILD = ("overflow", None)
_OVERFLOW = (
    "Look at the batches of those steps: `gradscale.truth.find_nonfinite` names the first place "
    "that is not finite."
)


def _still_looking(course: Course) -> Finding:
    return Finding(
        "warning", "no-step-yet", "No step has been taken yet.",
        f"All {counted(course.steps, 'step')} overflowed, from "
        f"{scale_words(course.scales[0])} down to {scale_words(course.scales[3])}.",
        "Train on until the scale fits, or start lower: `gradscale inspect` names the scale.",
    )  # fmt: skip


def _collapse(course: Course, final: Stretch) -> Finding:
    before = f"Go back to a checkpoint from before step {final.begin:,}. "
    return Finding(
        "error", "collapse", f"The run collapsed at step {final.begin:,}.",
        f"No step has been taken since: {counted(final.length, 'step')} in a row. {_why(final)}; "
        f"the scale went from {scale_words(final.scale)} to {scale_words(course.scales[3])}.",
        before + WHY.get(final.reason or "", _OVERFLOW),
    )  # fmt: skip


def _why(stretch: Stretch) -> str:
    return f"The first was skipped for {stretch.reason}" if stretch.reason else "Nobody said why"
