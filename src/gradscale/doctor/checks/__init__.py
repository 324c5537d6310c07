"""What can be wrong with a scaler, one subject a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gradscale.doctor.checks.counters import check_counters
from gradscale.doctor.checks.course import check_course
from gradscale.doctor.checks.defaults import check_settings
from gradscale.doctor.checks.growth import check_growth
from gradscale.doctor.checks.plan import check_plan
from gradscale.doctor.checks.scale import check_scale
from gradscale.doctor.checks.skips import check_skips
from gradscale.doctor.finding import Finding
from gradscale.doctor.patient import Patient

CHECKS: tuple[Callable[[Patient], Iterator[Finding]], ...] = (
    check_course,
    check_scale,
    check_skips,
    check_counters,
    check_growth,
    check_plan,
    check_settings,
)
