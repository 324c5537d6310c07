"""Scaler objects that were pickled whole, as the dictionaries that they would have saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradscale.doctor.inert.tree import SavedObject


def saved_by_object(thing: SavedObject) -> Mapping[str, Any] | None:
    """The state of a pickled scaler: its attributes, or what its `state_dict()` would give.

    Args:
        thing: a stand-in of any object.

    Returns:
        None if it is no scaler.

    Example:
        >>> attributes = {"_init_scale": 8.0, "_init_growth_tracker": 5, "_growth_factor": 2.0}
        >>> attributes |= {"_backoff_factor": 0.5, "_growth_interval": 2000}
        >>> saved_by_object(SavedObject("torch.amp.GradScaler", [], attributes))["scale"]
        8.0
    """
    held = thing.attributes
    if "cur_scale" in held or "dynamic_scale" in held:
        return held
    if "_init_scale" not in held:
        return None
    shared = {"scale": held["_init_scale"], "_growth_tracker": held.get("_init_growth_tracker", 0)}
    policy = held.get("policy")
    if isinstance(policy, SavedObject):
        return {**shared, **_factors(policy.attributes), "gradscale": _own(held, policy)}
    factors = {name: held.get(f"_{name}") for name in _FACTORS}
    return None if None in factors.values() else {**shared, **factors}


_FACTORS = ("growth_factor", "backoff_factor", "growth_interval")


def _factors(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in _FACTORS if name in config}


def _own(held: Mapping[str, Any], policy: SavedObject) -> dict[str, Any]:
    own: dict[str, Any] = {"policy": _described(policy), "state": held.get("_loaded") or {}}
    ledger = held.get("_ledger")
    counters = ledger.attributes.get("_counters") if isinstance(ledger, SavedObject) else None
    if isinstance(counters, SavedObject):
        own["counters"] = dict(counters.attributes)
    return own


def _described(policy: SavedObject) -> dict[str, Any]:
    config = {
        key: _described(value) if isinstance(value, SavedObject) else value
        for key, value in policy.attributes.items()
    }
    return {"name": policy.kind.rpartition(".")[2], "config": config}
