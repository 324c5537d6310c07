"""The settings that the code passes, compared with those that were saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from gradscale.doctor.examined_scaler import Patient
from gradscale.doctor.finding import Finding
from gradscale.doctor.number_text import setting_text
from gradscale.doctor.system_defaults import settings_of
from gradscale.policies import Policy, preset
from gradscale.policies.dynamic import Dynamic
from gradscale.policies.presets import PRESETS

_NOT_COMPARED = {"init_scale"}  # it says nothing once the scale has moved
_LOADING = {
    "torch": "torch's load_state_dict overwrites the code's settings by the saved ones, silently: "
    "set them again after loading, or change the code.",
    "gradscale": "load_state_dict keeps the code's settings and warns; "
    "`configuration='restore'` takes the saved ones.",
}
_ANY = "Find out which of them the system uses after a resume, and make the two agree."


def wanted_settings(against: Policy | str | Mapping[str, object]) -> dict[str, object]:
    """The settings to compare with.

    Args:
        against: a policy, the name of a preset, text such as ``"growth_interval=500,hysteresis=2"``
            or the same as a dictionary.

    Raises:
        ValueError: if there is no such preset or setting, or a value is no number.

    Example:
        >>> wanted_settings("growth_interval=500,min_scale=2^-10")
        {'growth_interval': 500, 'min_scale': 0.0009765625}
    """
    if isinstance(against, Policy):
        return {"policy": type(against).__name__, **settings_of(against)}
    # By the names of `Dynamic`: what other policies are set by, the other systems do not have.
    if isinstance(against, Mapping):
        return {_known(str(name)): value for name, value in against.items()}
    if against in PRESETS:
        return settings_of(preset(against))
    if "=" not in against:
        raise ValueError(
            f"`against={against!r}` must be a preset or settings. Pass one of "
            f"{', '.join(PRESETS)}, or settings such as growth_interval=500,hysteresis=2."
        )
    pairs = (part.partition("=") for part in against.split(",") if part.strip())
    return {_known(name.strip()): _value(name.strip(), text.strip()) for name, _, text in pairs}


def compare_settings(patient: Patient, wanted: Mapping[str, object]) -> Iterator[Finding]:
    """What differs between a scaler and the settings that the code passes.

    Args:
        patient: the scaler.
        wanted: from `wanted_settings`.
    """
    if patient.system == "none":
        return
    saved = {**patient.settings, **({"policy": patient.policy} if patient.policy else {})}
    compared = {n: v for n, v in wanted.items() if n not in _NOT_COMPARED}
    differing = [n for n, v in compared.items() if n in saved and saved[n] != v and v is not None]
    # What a scaler keeps as None, such as no cap, it does not list.
    unknown = [n for n, v in compared.items() if n not in saved and v is not None]
    if differing:
        said = "; ".join(
            f"{n}={setting_text(saved[n])} saved, {setting_text(wanted[n])} in the code"
            for n in differing
        )
        yield Finding(
            "warning", "settings-differ", "The saved settings differ from the code's.",
            f"{said}.", _LOADING.get(patient.system, _ANY),
        )  # fmt: skip
    if unknown and patient.system != "gradscale":
        yield Finding(
            "note", "not-compared", "Some settings cannot be compared.",
            f"{patient.name} does not save {', '.join(unknown)}.",
            "Look at the command line or the configuration of the run.",
        )  # fmt: skip


def _known(name: str) -> str:
    names = [field.name for field in dataclasses.fields(Dynamic)]
    if name not in names:
        raise ValueError(f"`against={name}=…` is no setting. Pass one of {', '.join(names)}.")
    return name


def _value(name: str, text: str) -> object:
    if name == "hysteresis_refill":
        return text
    if name == "window_follows_scale":
        return text.lower() in ("true", "1")
    # As powers of two are typed; a plain number may be 5e2, too.
    base, power, exponent = text.partition("^")
    try:
        number = float(base) ** int(exponent) if power else float(base)
    except (ValueError, ArithmeticError):
        raise ValueError(
            f"`against={name}={text}` must be a number, such as 500, 0.5 or 2^16."
        ) from None
    return int(number) if number.is_integer() and name in _WHOLE else number


_WHOLE = {"growth_interval", "hysteresis"}
