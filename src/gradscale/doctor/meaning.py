"""A scaler's state in sentences: where it stands and what happens next."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradscale.doctor.course import Course
from gradscale.doctor.patient import Patient
from gradscale.doctor.words import percent, reasons, scale, times


def meaning(patient: Patient) -> Iterator[str]:
    """What the state means, a sentence at a time.

    Args:
        patient: the scaler.

    Example:
        >>> list(meaning(Patient("torch", "", 8.0, good_steps=1, settings={"growth_interval": 4})))
        ['Loss scale 2^3 (8).', '1 of 4 finite steps towards the next growth.']
    """
    if patient.system == "none":
        yield "The run scales no loss."
    elif not math.isnan(patient.scale):
        policy = f", moved by {patient.policy}" if patient.policy else ""
        fixed = ", fixed" if patient.dynamic is False and not policy else ""
        yield f"Loss scale {scale(patient.scale)}{policy}{fixed}."
    if patient.dynamic is not False and patient.system != "none":
        yield from _next(patient)
    yield from _so_far(patient)
    yield from (f"Not judged: {part}." for part in patient.unread)


def _next(patient: Patient) -> Iterator[str]:
    good, interval = patient.good_steps, patient.interval
    if good is not None and interval is not None:
        yield f"{good:,} of {times(interval, 'finite step')} towards the next growth."
    elif good and patient.policy in (None, "Dynamic"):
        yield f"{times(good, 'finite step')} towards the next growth."
    left = patient.hysteresis_left
    if left is not None and left > 1:
        yield f"Backs off after {left} more overflows."


def _so_far(patient: Patient) -> Iterator[str]:
    skips = patient.skips
    if skips is not None and skips.steps:
        why = f": {reasons(skips.reasons)}" if skips.reasons else ""
        share = percent(skips.share)
        yield f"{skips.skipped:,} of {times(skips.steps, 'step')} skipped ({share}){why}."
    elif patient.steps:
        yield f"{times(patient.steps, 'step')} so far."
    if patient.plan is not None:
        graphs = times(patient.plan.graphs, "graph")
        yield f"A plan by layer: up to {times(patient.plan.scales, 'loss scale')} for {graphs}."
    if patient.course is not None and patient.system != "none":
        yield _course(patient.course)


def _course(course: Course) -> str:
    first, lowest, highest, last = (scale(value) for value in course.scales)
    moved = f"{times(course.growths, 'growth')}, {times(course.backoffs, 'back-off')}"
    return f"The scale went from {first} to {last}, between {lowest} and {highest}: {moved}."
