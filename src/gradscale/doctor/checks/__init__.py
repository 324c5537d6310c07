"""What can be wrong with a scaler, one subject a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gradscale.doctor.checks.counters import check_counters
from gradscale.doctor.checks.growth import check_growth
from gradscale.doctor.checks.run_steps import check_run_steps
from gradscale.doctor.checks.saved_plan import check_plan
from gradscale.doctor.checks.scale_value import check_scale_value
from gradscale.doctor.checks.settings import check_settings
from gradscale.doctor.checks.skips import check_skips
from gradscale.doctor.examined_scaler import Patient
from gradscale.doctor.finding import Finding

# In the order in which a reader wants to know: what happened, the scale, and then what explains it.
CHECKS: tuple[Callable[[Patient], Iterator[Finding]], ...] = (
    check_run_steps,
    check_scale_value,
    check_skips,
    check_counters,
    check_growth,
    check_plan,
    check_settings,
)
