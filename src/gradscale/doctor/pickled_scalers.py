"""Scaler objects that were pickled whole, as the dictionaries that they would have saved."""

from __future__ import annotations

from collections.abc import Mapping

from gradscale.doctor.inert.tree import SavedObject


def saved_by_object(thing: SavedObject) -> Mapping[str, object] | None:
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
    # Pickled as they are: their attributes are what other systems save as a dictionary.
    if "cur_scale" in held or "dynamic_scale" in held:
        return held
    ours = _part(thing, "_held")
    if ours is not None:
        return _ours(ours.attributes, held.get("_books"))
    # All three, because other objects have an `_init_scale`, too.
    factors = {name: held.get(f"_{name}") for name in _FACTORS}
    if "_init_scale" not in held or None in factors.values():
        return None
    tracker = held.get("_init_growth_tracker", 0)
    return {"scale": held["_init_scale"], "_growth_tracker": tracker, **factors}


# torch keeps them in attributes of these names, an underscore in front.
_FACTORS = ("growth_factor", "backoff_factor", "growth_interval")


def _ours(held: Mapping[str, object], books: object) -> Mapping[str, object] | None:
    """The state of our own scaler, of its parts that hold the scale and the counters."""
    policy = held.get("policy")
    if not isinstance(policy, SavedObject):
        return None
    config = policy.attributes
    own: dict[str, object] = {"policy": _described(policy), "state": held.get("loaded") or {}}
    counters = _part(_part(books, "ledger"), "_counters")
    if counters is not None:
        own["counters"] = dict(counters.attributes)
    return {
        "scale": held.get("init_scale"),
        "_growth_tracker": held.get("init_growth_tracker", 0),
        **{name: config[name] for name in _FACTORS if name in config},
        "gradscale": own,
    }


def _part(thing: object, name: str) -> SavedObject | None:
    part = thing.attributes.get(name) if isinstance(thing, SavedObject) else None
    return part if isinstance(part, SavedObject) else None


def _described(policy: SavedObject) -> dict[str, object]:
    config = {
        key: _described(value) if isinstance(value, SavedObject) else value
        for key, value in policy.attributes.items()
    }
    return {"name": policy.kind.rpartition(".")[2], "config": config}
