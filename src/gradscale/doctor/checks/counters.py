"""Counters that contradict the settings, and counters that nobody saved."""

from __future__ import annotations

from collections.abc import Iterator

from gradscale.doctor.examined_scaler import Patient
from gradscale.doctor.finding import Finding

_ONLY_AT_EQUALITY = {"torch", "gradscale", "apex", "megatron", "keras", "flax"}
"""Systems that grow where the count *equals* the interval."""


def check_counters(patient: Patient) -> Iterator[Finding]:
    """What the counters towards growth and back-off say."""
    good, interval = patient.good_steps, patient.interval
    follows = patient.settings.get("window_follows_scale")
    if patient.dynamic is not False and interval is not None and good is not None and not follows:
        if good >= interval and patient.system in _ONLY_AT_EQUALITY:
            yield Finding(
                "warning", "tracker-beyond", "The scale will not grow before the next overflow.",
                f"{good:,} finite steps are counted and growth is due at exactly {interval:,}: "
                "the interval was shortened after the count had passed it.",
                "Set the saved growth tracker to 0, or the interval above it.",
            )  # fmt: skip
    # A fixed scale has nothing to count towards.
    if patient.unsaved and patient.dynamic is not False:
        names = " and ".join(_COUNTERS[name] for name in patient.unsaved)
        yield Finding(
            "note", "counters-missing", "Part of the scaler's state is not saved.",
            f"{patient.name} does not save {names}.",
            "After a resume they start anew, so the scale moves later than it would have; a run "
            "that must resume exactly needs a scaler that saves them, such as gradscale's.",
        )  # fmt: skip
    yield from _hysteresis(patient)


_COUNTERS = {
    "good_steps": "the finite steps counted towards growth",
    "hysteresis_left": "the overflows left until it backs off",
}


def _hysteresis(patient: Patient) -> Iterator[Finding]:
    full, left = patient.settings.get("hysteresis"), patient.hysteresis_left
    if patient.dynamic is False or not isinstance(full, int) or full < 2 or left != 1:
        return
    # Megatron and DeepSpeed refill where the scale grows, and save no such setting.
    refill = patient.settings.get("hysteresis_refill", "growth")
    when = "grows" if refill == "growth" else "takes a finite step"
    yield Finding(
        "note", "hysteresis-used-up", "The next overflow backs off.",
        f"The hysteresis of {full} is used up; it is refilled when the scale {when}.",
        "Nothing, if overflows are rare. To forgive each of them anew, use "
        '`gradscale.Dynamic(hysteresis_refill="clean")`.',
    )  # fmt: skip
