"""A scaler's state in sentences: where it stands and what happens next."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradscale.doctor.examined_scaler import Patient
from gradscale.doctor.number_text import counted, reasons_text, scale_words
from gradscale.doctor.run_course import Course
from gradscale.percent import percent


def state_sentences(patient: Patient) -> Iterator[str]:
    """What the state means, a sentence at a time.

    Args:
        patient: the scaler.

    Example:
        >>> patient = Patient("torch", "", 8.0, good_steps=1, settings={"growth_interval": 4})
        >>> list(state_sentences(patient))
        ['Loss scale 2^3 (8).', '1 of 4 finite steps towards the next growth.']
    """
    if patient.system == "none":
        yield "The run scales no loss."
    elif not math.isnan(patient.scale):
        policy = f", moved by {patient.policy}" if patient.policy else ""
        fixed = ", fixed" if patient.dynamic is False and not policy else ""
        yield f"Loss scale {scale_words(patient.scale)}{policy}{fixed}."
    if patient.dynamic is not False and patient.system != "none":
        yield from _next(patient)
    yield from _so_far(patient)
    yield from (f"Not judged: {part}." for part in patient.unread)


def _next(patient: Patient) -> Iterator[str]:
    good, interval = patient.good_steps, patient.interval
    if good is not None and interval is not None:
        yield f"{good:,} of {counted(interval, 'finite step')} towards the next growth."
    # Other policies of ours keep a count as well, and do not grow by it.
    elif good and patient.policy in (None, "Dynamic"):
        yield f"{counted(good, 'finite step')} towards the next growth."
    left = patient.hysteresis_left
    if left is not None and left > 1:
        yield f"Backs off after {left} more overflows."


def _so_far(patient: Patient) -> Iterator[str]:
    skips = patient.skips
    if skips is not None and skips.steps:
        why = f": {reasons_text(skips.reasons)}" if skips.reasons else ""
        share = percent(skips.share)
        yield f"{skips.skipped:,} of {counted(skips.steps, 'step')} skipped ({share}){why}."
    elif patient.steps:
        yield f"{counted(patient.steps, 'step')} so far."
    if patient.plan is not None:
        graphs = counted(patient.plan.graphs, "graph")
        yield f"A plan by layer: up to {counted(patient.plan.scales, 'loss scale')} for {graphs}."
    if patient.course is not None and patient.system != "none":
        yield _course(patient.course)
        yield from _dropped(patient.course)


def _dropped(course: Course) -> Iterator[str]:
    if course.dropped:
        batches = counted(course.dropped, "micro-batch was", "micro-batches were")
        bad = f"; the loss was not finite in {course.bad_data:,} of these"
        where = counted(course.without_some, "step")
        yield f"{batches} left out, in {where}{bad if course.bad_data else ''}."


def _course(course: Course) -> str:
    first, lowest, highest, last = (scale_words(value) for value in course.scales)
    if lowest == highest == first == last:
        return f"The scale stayed at {first}."
    moved = f"{counted(course.growths, 'growth')}, {counted(course.backoffs, 'back-off')}"
    return f"The scale went from {first} to {last}, between {lowest} and {highest}: {moved}."
