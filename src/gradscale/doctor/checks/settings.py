"""Settings that contradict the run's own arguments, or the system's defaults."""

from __future__ import annotations

from collections.abc import Iterator

from gradscale.doctor.examined_scaler import Patient
from gradscale.doctor.finding import Finding
from gradscale.doctor.number_text import setting_text
from gradscale.doctor.system_defaults import defaults_of

_QUIET = {"init_scale", "dynamic", "scale"}


def check_settings(patient: Patient) -> Iterator[Finding]:
    """Settings that somebody should know about."""
    if patient.beside:
        said = ", ".join(
            f"{name} is {setting_text(patient.settings[name])} in the state and "
            f"{setting_text(value)} in the run's arguments"
            for name, value in patient.beside.items()
        )
        yield Finding(
            "warning", "arguments-differ", "The state and the run's own arguments disagree.",
            f"{said[0].upper()}{said[1:]}.",
            "Decide which is meant: the state's wins when the checkpoint is loaded.",
            patient.where,
        )  # fmt: skip
    differing = list(_differing(patient))
    if differing:
        yield Finding(
            "note", "not-default", f"Settings differ from the defaults of {patient.name}.",
            f"{'; '.join(differing)}.",
            "Nothing, if that is meant.", patient.where,
        )  # fmt: skip


def _differing(patient: Patient) -> Iterator[str]:
    defaults = defaults_of(patient.system, patient.policy)
    for name, value in patient.settings.items():
        if name in _QUIET or name not in defaults or _same(value, defaults[name]):
            continue
        yield f"{name}={setting_text(value)} (default {setting_text(defaults[name])})"


def _same(one: object, other: object) -> bool:
    return one == other or str(one) == str(other)
