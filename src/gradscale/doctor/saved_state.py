"""From a saved state to a patient: what the state says, and what stands beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, cast

from gradscale.checkpoints import ScalerState, read_state
from gradscale.checkpoints.state import MAX_SCALE, MIN_SCALE
from gradscale.checkpoints.values import read_count, read_float
from gradscale.doctor.examined_scaler import Patient, PlanFacts, Skips
from gradscale.doctor.run_arguments import RunArguments
from gradscale.doctor.state_search import FoundState

_SCALE_KEYS = {
    "deepspeed": "cur_scale",
    "deepspeed_fused": "cur_scale",
    "fairseq": "loss_scale",
    "apex": "loss_scale",
    "keras": "dynamic_scale",
}
_UNREADABLE = (ValueError, TypeError, OverflowError, KeyError, AttributeError)


def examined(found: FoundState, beside: RunArguments) -> Patient:
    """A patient from a state that `find_states` found.

    Args:
        found: the state.
        beside: what the rest of the checkpoint says.

    Example:
        >>> saved = {"scale": 0.0, "growth_tracker": 0, "hysteresis_tracker": 2}
        >>> examined(FoundState("megatron", "", saved), RunArguments()).scale
        0.0
    """
    saved = found.state
    broken, state, scale = None, None, math.nan
    try:
        scale, healthy = _scale(found.system, saved)
        state = read_state(healthy, found.system)
    except _UNREADABLE as error:
        broken = str(error) or type(error).__name__
    settings = _settings(found.system, state, saved)
    missing = {k: v for k, v in beside.settings.items() if settings.get(k) is None}
    known = {**settings, **missing}
    patient = Patient(
        system=found.system,
        where=found.where,
        scale=scale,
        settings={name: value for name, value in known.items() if value is not None},
        from_beside=tuple(missing),
        beside={
            name: value
            for name, value in beside.settings.items()
            if name in settings and settings[name] not in (None, value)
        },
        broken=broken,
    )
    return _with_history(patient, state, saved, beside)


def _scale(system: str, saved: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    """The scale as it is, and the state with one that can be read."""
    wanted = _SCALE_KEYS.get(system, "scale")
    inner = next(iter(saved)) if system == "apex" else None
    holder: Mapping[str, Any] = saved if inner is None else saved[inner]
    key = next(key for key in holder if str(key).rsplit("/", 1)[-1] == wanted)
    scale = read_float(holder, key)
    if math.isfinite(scale) and MIN_SCALE <= scale <= MAX_SCALE:
        return scale, dict(saved)
    mended = {**holder, key: 1.0}
    return scale, mended if inner is None else {inner: mended}


def _settings(system: str, state: ScalerState | None, saved: Mapping[str, Any]) -> dict[str, Any]:
    if state is None:
        return {}
    settings = {name: getattr(state.settings, name) for name in state.settings.found}
    settings.pop("dynamic", None)
    if system != "gradscale":
        return settings
    return {**settings, **settings_in(_own(saved, "policy", "config"))}


def settings_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a policy's saved configuration names, the bounds of a policy within it too.

    Example:
        >>> settings_in({"patience": 3, "inner": {"config": {"min_scale": 1.0}}})
        {'min_scale': 1.0, 'patience': 3}
    """
    settings: dict[str, Any] = {}
    for name, value in config.items():
        match value:
            case {"config": dict(inner)}:
                bounds: dict[str, Any] = inner
                settings = {k: bounds[k] for k in _BOUNDS if bounds.get(k) is not None} | settings
            case None:
                pass
            case _:
                settings[name] = value
    return settings


_BOUNDS = ("min_scale", "max_scale")


def _with_history(
    patient: Patient, state: ScalerState | None, saved: Mapping[str, Any], beside: RunArguments
) -> Patient:
    if state is None:
        return patient
    policy = _own(saved, "policy").get("name") if patient.system == "gradscale" else None
    changes: dict[str, Any] = {
        "policy": policy,
        "dynamic": False if policy == "Static" else state.settings.dynamic is not False,
        "good_steps": state.good_steps,
        "hysteresis_left": state.hysteresis_left,
        "unsaved": state.missing,
        "unread": state.unread if patient.system != "gradscale" else (),
        "steps": beside.steps,
    }
    if beside.skipped is not None and beside.steps:
        changes["skips"] = Skips(beside.steps, beside.skipped)
    if patient.system == "deepspeed" and "last_overflow_iter" in saved:
        changes["steps"] = read_count(saved, "cur_iter")
        changes["never_overflowed"] = read_count(saved, "last_overflow_iter") < 0
    if patient.system == "gradscale":
        changes |= _counted(saved)
        changes["plan"] = _plan(_own(saved, "layerwise"))
    return Patient(**{**vars(patient), **changes})


def _own(saved: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    value: Any = saved.get("gradscale", {})
    for name in names:
        value = cast("dict[str, Any]", value).get(name, {}) if isinstance(value, dict) else {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _counted(saved: Mapping[str, Any]) -> dict[str, Any]:
    counters = _own(saved, "counters")
    if not counters:
        return {}
    try:
        reasons = {str(name): int(n) for name, n in counters.get("reasons", {}).items()}
        numbers = (read_count(counters, name) for name in ("steps", "skipped", "consecutive"))
        skips = Skips(*numbers, reasons=reasons)
        never = not reasons.get("overflow", 0) if skips.steps else None
    except _UNREADABLE:
        return {}
    steps = skips.steps if "updates" not in counters else read_count(counters, "updates")
    return {"skips": skips, "never_overflowed": never, "steps": steps or skips.steps}


def _plan(layerwise: Mapping[str, Any]) -> PlanFacts | None:
    tracks: Any = layerwise.get("tracks")
    if isinstance(tracks, str):
        try:
            tracks = json.loads(tracks)
        except (ValueError, RecursionError):
            return None
    if not isinstance(tracks, dict) or not tracks:
        return None
    frozen: list[str] = []
    scales = 1
    for track in cast("dict[str, Any]", tracks).values():
        match track:
            case {"plan": {"exponents": list(exponents)}, "frozen": why}:
                given: list[Any] = exponents
                scales = max(scales, len({n for n in given if isinstance(n, int)}))
                frozen += [str(why)] if why else []
            case _:
                pass
    return PlanFacts(len(cast("dict[str, Any]", tracks)), scales, tuple(frozen))
