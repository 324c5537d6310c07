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
        )  # fmt: skip
    defaults = defaults_of(patient.system, patient.policy)
    # As text, too: a default may be an int where a file has a float.
    differing = [
        f"{name}={setting_text(value)} (default {setting_text(defaults[name])})"
        for name, value in patient.settings.items()
        if name in defaults.keys() - _QUIET
        if value != defaults[name] and str(value) != str(defaults[name])
    ]
    if differing:
        yield Finding(
            "note", "not-default", f"Settings differ from the defaults of {patient.name}.",
            f"{'; '.join(differing)}.",
            "Nothing, if that is meant.",
        )  # fmt: skip
