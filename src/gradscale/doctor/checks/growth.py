"""Whether the scale has met its limit: one that never overflowed may lose gradients below."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradscale.doctor.examined_scaler import Patient
from gradscale.doctor.finding import Finding
from gradscale.doctor.number_text import counted, scale_words
from gradscale.doctor.system_defaults import cap_of, defaults_of


def check_growth(patient: Patient) -> Iterator[Finding]:
    """Whether time alone has limited the scale, or overflows never let it grow."""
    interval = patient.interval
    if patient.dynamic is False or not (math.isfinite(patient.scale) and patient.scale > 0):
        return
    never, why = _never_overflowed(patient)
    cap = cap_of(patient.system, patient.settings, patient.policy)
    if never and interval is not None and (cap is None or patient.scale < cap):
        yield _growing(patient, interval, why)
    yield from _only_falls(patient)


def _growing(patient: Patient, interval: int, why: str) -> Finding:
    steps = patient.steps or (patient.good_steps or 0)
    if steps < interval:
        return Finding(
            "note", "untested", "The scale has not been tried yet.",
            f"{why}; the first growth comes after {counted(interval, 'finite step')}.",
            "Start higher, or measure: `gradscale inspect` finds the right scale in a few steps.",
        )  # fmt: skip
    return Finding(
        "warning", "still-growing", "The scale is still growing: it has never met its limit.",
        f"{why}; at {scale_words(patient.scale)} it was limited by time, a growth every "
        f"{counted(interval, 'step')}. Until it overflows, smaller gradients may be lost "
        "unnoticed.",
        "Start higher or shorten growth_interval; `gradscale inspect` or `gradscale.watch` says "
        "what is lost, `gradscale.Band()` sets the scale from what it sees.",
    )  # fmt: skip


def _never_overflowed(patient: Patient) -> tuple[bool, str]:
    steps = patient.steps
    if patient.never_overflowed is not None:
        said = f"None of {counted(steps, 'step')}" if steps else "No step"
        return patient.never_overflowed, f"{said} overflowed"
    # Without a count of overflows: whether scale and tracker are where only growths lead.
    interval, good = patient.interval, patient.good_steps
    factor = patient.settings.get("growth_factor")
    if not (interval and steps and factor == 2.0) or good is None:
        return False, ""
    first = patient.settings.get("init_scale") or defaults_of(patient.system).get("init_scale")
    growths = steps // interval
    # No scale has doubled 200 times, and 2.0**1024 would raise.
    if not isinstance(first, int | float) or growths > 200 or good != steps % interval:
        return False, ""
    return patient.scale == first * 2.0**growths, (
        f"After {counted(steps, 'step')} it is where {counted(growths, 'growth')} and no "
        f"overflow lead from {scale_words(float(first))}"
    )


def _only_falls(patient: Patient) -> Iterator[Finding]:
    course, interval = patient.course, patient.interval
    if course is None or interval is None or course.final is not None:
        return
    # Growth was due four times over, and two back-offs are no accident.
    if course.growths == 0 and course.backoffs > 1 and course.steps > 4 * interval:
        yield Finding(
            "warning", "never-grew", "The scale only ever fell.",
            f"{counted(course.backoffs, 'back-off')} and no growth in "
            f"{counted(course.steps, 'step')}, "
            f"{course.steps // interval} times the growth interval.",
            "Overflows come faster than growths: look at their reasons, or shorten "
            "growth_interval.",
        )  # fmt: skip
