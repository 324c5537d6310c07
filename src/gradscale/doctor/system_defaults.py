"""Each system's own settings, by the names of `gradscale.Dynamic`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import gradscale.policies
from gradscale.policies import Policy, presets
from gradscale.policies.bits import MIN_SCALE

_POLICIES: dict[str, Policy] = {
    **{name: make() for name, make in presets.PRESETS.items()},
    # It has no hysteresis, and starts from 2^32 where no configuration says otherwise.
    "deepspeed_fused": dataclasses.replace(presets.deepspeed(), hysteresis=1),
}


def defaults_of(system: str, policy: str | None = None) -> dict[str, object]:
    """What the system does where nobody sets anything.

    Args:
        system: a name of `gradscale.checkpoints.SYSTEMS`.
        policy: of a scaler of ours.

    Returns:
        Settings by name; those without a default are left out.

    Example:
        >>> defaults_of("deepspeed")["hysteresis"], defaults_of("apex")["max_scale"]
        (2, 16777216.0)
    """
    if system == "gradscale":
        # The name comes from a file: it may name anything, or nothing.
        kind = getattr(gradscale.policies, policy or "Dynamic", None)
        if not (isinstance(kind, type) and issubclass(kind, Policy)):
            return {}
        fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
        return {
            field.name: field.default
            for field in fields
            if field.default is not dataclasses.MISSING
        }
    return settings_of(_POLICIES[system]) if system in _POLICIES else {}


def settings_of(policy: Policy) -> dict[str, object]:
    """The settings of a policy by name.

    Example:
        >>> settings_of(gradscale.policies.Dynamic(growth_interval=500))["growth_interval"]
        500
    """
    if not dataclasses.is_dataclass(policy):
        return {}
    return {field.name: getattr(policy, field.name) for field in dataclasses.fields(policy)}


def floor_of(system: str, settings: Mapping[str, object], policy: str | None) -> tuple[float, bool]:
    """The floor of the scale, and whether the file says so (else it is the default).

    Example:
        >>> floor_of("megatron", {}, None)
        (1.0, False)
    """
    said = settings.get("min_scale")
    if isinstance(said, int | float):
        return float(said), True
    default = defaults_of(system, policy).get("min_scale")
    return float(default) if isinstance(default, int | float) else MIN_SCALE, False


def cap_of(system: str, settings: Mapping[str, object], policy: str | None) -> float | None:
    """The cap of the scale, the system's own where the file does not say; None without one.

    Example:
        >>> cap_of("apex", {}, None), cap_of("torch", {}, None)
        (16777216.0, None)
    """
    said = settings.get("max_scale", defaults_of(system, policy).get("max_scale"))
    return float(said) if isinstance(said, int | float) else None
