"""Steps that were not taken: how many, in a row, and why."""

from __future__ import annotations

from collections.abc import Iterator

from gradscale.doctor.examined_scaler import Patient, Skips
from gradscale.doctor.finding import Finding
from gradscale.doctor.number_text import counted, reasons_text
from gradscale.outcomes.alarm import PATIENCE
from gradscale.percent import percent

AT_START = 20
"""Skipped steps that finding the first scale may take: from 2^32 down to 2^12."""

MOST = 0.01
"""Share of skipped steps, those at the start left out, that nobody needs to worry about."""

WHY = {
    "nonfinite_loss": "Leave those batches out or find out what is in them; no scale helps.",
    "nonfinite_input": "Clean the data: an input is infinite or NaN; no scale helps.",
    "nonfinite_parameter": "Go back to a checkpoint from before: the weights are infinite or NaN, "
    "and every further step will be skipped.",
}


def check_skips(patient: Patient) -> Iterator[Finding]:
    """What the counters of skipped steps say."""
    skips = patient.skips
    if skips is None or not skips.steps:
        return
    yield from _bad_data(skips)
    yield from _too_many(skips, patient.interval)
    # A run's own steps say more of it: `check_run_steps`.
    if patient.course is None and skips.consecutive is not None and skips.consecutive >= PATIENCE:
        yield Finding(
            "error" if skips.consecutive >= AT_START else "warning", "skipping",
            f"The last {counted(skips.consecutive, 'step')} in a row were skipped.",
            f"consecutive = {skips.consecutive} of {skips.steps:,}.",
            "If the scale is still coming down from its start, wait. Otherwise "
            "`gradscale.truth.find_nonfinite` on the batch names the first place.",
        )  # fmt: skip


def _bad_data(skips: Skips) -> Iterator[Finding]:
    for reason, way_out in WHY.items():
        count = skips.reasons.get(reason, 0)
        if count:
            severity = "error" if reason == "nonfinite_parameter" else "warning"
            lost = counted(count, "step was", "steps were")
            skipped = counted(skips.skipped, "skipped step")
            yield Finding(
                severity, reason.replace("_", "-"),
                f"{lost} lost to {_NAMES[reason]}, not to the scale.",
                f"Reasons of {skipped}: {reasons_text(skips.reasons)}.", way_out,
            )  # fmt: skip


_NAMES = {
    "nonfinite_loss": "an infinite or NaN loss",
    "nonfinite_input": "infinite or NaN inputs",
    "nonfinite_parameter": "infinite or NaN weights",
}


def _too_many(skips: Skips, interval: int | None) -> Iterator[Finding]:
    # A scale that probes for its limit overflows about once an interval; twice is still healthy.
    expected = max(MOST, 2 / interval if interval else 0)
    overflows = skips.reasons.get("overflow", 0) if skips.reasons else skips.skipped
    if overflows - AT_START <= expected * skips.steps:
        return
    said = reasons_text(skips.reasons) or "the state does not say why"
    yield Finding(
        "error" if skips.share > 0.5 else "warning", "skipped-share",
        f"{percent(skips.share)} of the steps were skipped.",
        f"{skips.skipped:,} of {skips.steps:,} ({said}); a healthy run skips a few at its start "
        f"and then less than {percent(expected)}.",
        "Let it grow more slowly (a larger growth_interval) if it overflows after every growth; "
        "keep away from the limit with `gradscale.Band()`; if it overflows at any scale, look for "
        "what is not finite with `gradscale.truth.find_nonfinite`.",
    )  # fmt: skip
