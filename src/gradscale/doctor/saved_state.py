"""A scaler as its saved state, and what stands beside it, tell of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from gradscale.backward.plan import LARGEST_EXPONENT
from gradscale.checkpoints import ScalerState, read_state
from gradscale.doctor.examined_scaler import Patient, PlanFacts, Setting, Skips
from gradscale.doctor.run_arguments import RunArguments
from gradscale.doctor.state_search import FoundState
from gradscale.entries import Entries, plain_settings
from gradscale.layerwise.saved_plans import saved_tracks
from gradscale.policies.bits import MAX_FLOAT32, MIN_SCALE

_SCALE_KEYS = {
    "deepspeed": "cur_scale",
    "deepspeed_fused": "cur_scale",
    "fairseq": "loss_scale",
    "apex": "loss_scale",
    "keras": "dynamic_scale",
}
_BOUNDS = ("min_scale", "max_scale")


def examined(found: FoundState, beside: RunArguments) -> Patient:
    """A scaler from a state that `find_states` found.

    Args:
        found: the state.
        beside: what the rest of the checkpoint says.

    Example:
        >>> saved = {"scale": 0.0, "growth_tracker": 0, "hysteresis_tracker": 2}
        >>> examined(FoundState("megatron", "", saved), RunArguments()).scale
        0.0
    """
    broken, state, scale = None, None, math.nan
    try:
        scale, healthy = _scale(found.system, found.state)
        state = read_state(healthy, found.system)
    except (ValueError, TypeError) as error:
        broken = str(error)
    # Both are kept apart until here: where they contradict each other, that is a finding.
    settings = _settings(found, state)
    missing = {k: v for k, v in beside.settings.items() if k not in settings}
    patient = Patient(
        system=found.system,
        where=found.where,
        scale=scale,
        settings={**settings, **missing},
        from_beside=tuple(missing),
        beside={k: v for k, v in beside.settings.items() if settings.get(k, v) != v},
        broken=broken,
    )
    return patient if state is None else _with_history(patient, state, found.state, beside)


def _scale(system: str, saved: Mapping[str, object]) -> tuple[float, dict[str, object]]:
    """The scale as it is, and the state with one that can be read."""
    wanted = _SCALE_KEYS.get(system, "scale")
    loss = next(iter(saved)) if system == "apex" else None
    holder = Entries(saved) if loss is None else Entries(saved).entries(loss)
    # Keras' keys are paths, of which the last part is the name.
    key = next((key for key in holder.held if str(key).rsplit("/", 1)[-1] == wanted), wanted)
    scale = holder.number(key)
    if MIN_SCALE <= scale <= MAX_FLOAT32:
        return scale, dict(saved)
    # `read_state` refuses a scale that no scaler can have; the rest of the state is still of use.
    mended: dict[str, object] = {**holder.held, key: 1.0}
    return scale, mended if loss is None else {loss: mended}


def _settings(found: FoundState, state: ScalerState | None) -> dict[str, Setting]:
    if state is None:
        return {}
    settings = {name: getattr(state.settings, name) for name in state.settings.found}
    settings.pop("dynamic", None)
    if found.system != "gradscale":
        return settings
    policy = Entries(found.state).within("gradscale").within("policy")
    return {**settings, **settings_in(policy.within("config").held)}


def settings_in(config: Mapping[str, object]) -> dict[str, Setting]:
    """The settings that a policy's saved configuration names, the bounds of a policy within it too.

    Example:
        >>> settings_in({"patience": 3, "inner": {"config": {"min_scale": 1.0}}})
        {'min_scale': 1.0, 'patience': 3}
    """
    settings: dict[str, Setting] = {}
    for value in config.values():
        match value:
            case {"config": dict(inner)}:
                held: dict[str, object] = inner
                bounds = plain_settings((k, held[k]) for k in _BOUNDS if k in held)
                settings = bounds | settings  # of several, the outermost has the last word
            case _:
                pass
    return settings | plain_settings((str(name), value) for name, value in config.items())


def _with_history(
    patient: Patient, state: ScalerState, saved: Mapping[str, object], beside: RunArguments
) -> Patient:
    patient = dataclasses.replace(
        patient,
        dynamic=state.settings.dynamic is not False,
        good_steps=state.good_steps,
        hysteresis_left=state.hysteresis_left,
        unsaved=state.missing,
        steps=beside.steps,
        skips=Skips(beside.steps, beside.skipped)
        if beside.steps and beside.skipped is not None
        else None,
    )
    if patient.system == "gradscale":
        return _of_ours(patient, Entries(saved).within("gradscale"))
    patient = dataclasses.replace(patient, unread=state.unread)
    # -1 until the first overflow; the iterations that it counts are the run's steps.
    if patient.system == "deepspeed" and "last_overflow_iter" in saved:
        held = Entries(saved)
        never = held.count("last_overflow_iter", least=-1) < 0
        patient = dataclasses.replace(patient, steps=held.count("cur_iter"), never_overflowed=never)
    return patient


def _of_ours(patient: Patient, own: Entries) -> Patient:
    """What only our own state says: the policy by name, the counters, the plan."""
    try:
        policy = own.within("policy").optional(own.within("policy").text, "name")
        counted = _counted(own.within("counters"))
        plans = own.within("layerwise")
        plan = _plan(saved_tracks(plans)) if plans.has("tracks") else None
    except (ValueError, TypeError) as error:
        return dataclasses.replace(patient, broken=str(error))
    dynamic = False if policy == "Static" else patient.dynamic
    return dataclasses.replace(patient, policy=policy, dynamic=dynamic, plan=plan, **counted)


def _counted(counters: Entries) -> dict[str, object]:
    if not counters.held:
        return {}
    held = counters.within("reasons")
    reasons = {name: count for name in held.held if (count := held.count(name))}
    numbers = (counters.count(name) for name in ("steps", "skipped", "consecutive"))
    skips = Skips(*numbers, reasons=reasons)
    never = not reasons.get("overflow", 0) if skips.steps else None
    updates = counters.optional(counters.count, "updates")
    return {"skips": skips, "never_overflowed": never, "steps": updates or skips.steps}


def _plan(tracks: Entries) -> PlanFacts | None:
    if not tracks.held:
        return None
    frozen: list[str] = []
    scales = 1
    for name in tracks.held:
        track = tracks.entries(name)
        exponents = track.within("plan")
        if exponents.has("exponents"):
            found = exponents.counts("exponents", least=-LARGEST_EXPONENT, most=LARGEST_EXPONENT)
            scales = max(scales, len(set(found)))
            why = track.optional(track.text, "frozen")
            frozen += [why] if why else []
    return PlanFacts(len(tracks.held), scales, tuple(frozen))
